package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"vers/api"
	"vers/internal/cli/local"
	"vers/internal/cli/mcp"
	"vers/internal/cli/ref"
	"vers/internal/fault"
)

func (m *agentTools) addVMTools(s *mcp.Server) {
	mcp.Add(s, mcp.Tool{
		Name: "vers.status", Title: "List VMs", PerMinute: 60, ReadOnly: true,
		Description: "Lists the VMs of the organisation with state and alias, or shows one, and says which VM is HEAD.",
	}, m.status)
	mcp.Add(s, mcp.Tool{
		Name: "vers.info", Title: "Show a VM", PerMinute: 60, ReadOnly: true,
		Description: "Shows all about a VM: state, address, sizes, image, parent commit.",
	}, func(ctx context.Context, call *mcp.Call, in vmInput) (infoResult, error) {
		return command[infoResult](m, call, func(a *App) error { return a.info(ctx, in.Target, asJSON) })
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.run", Title: "Start a VM", PerMinute: 4,
		Description: "Starts a new VM from an image and moves HEAD to it. Sizes that are left out come from vers.toml of the folder of " +
			"the server, else they are 512 MiB of memory, 1 CPU, 1024 MiB of disk. Returns when commands can run in it.",
	}, m.run)
	mcp.Add(s, mcp.Tool{
		Name: "vers.run_commit", Title: "Start a VM from a commit", PerMinute: 10,
		Description: "Starts a new VM that goes on from a commit, with its memory, processes and disk, and moves HEAD to it.",
	}, m.runCommit)
	mcp.Add(s, mcp.Tool{
		Name: "vers.branch", Title: "Branch a VM", PerMinute: 10,
		Description: "Makes copies of a running VM that go on from here, with memory, processes and disk. The source runs on. " +
			"HEAD does not move unless checkout is true.",
	}, m.branch)
	m.addStateTools(s)
	mcp.Add(s, mcp.Tool{
		Name: "vers.kill", Title: "Delete VMs", PerMinute: 4, Destructive: true,
		Description: "Deletes VMs for good; their commits and the VMs branched from them live on. Needs skipConfirmation: true.",
	}, m.kill)
}

func (m *agentTools) addStateTools(s *mcp.Server) {
	mcp.Add(s, mcp.Tool{
		Name: "vers.checkout", Title: "Choose HEAD", PerMinute: 60, Idempotent: true,
		Description: "Lets HEAD name a VM, so that other tools use it where no target is given. Without a target it tells HEAD.",
	}, func(ctx context.Context, call *mcp.Call, in vmInput) (headResult, error) {
		return command[headResult](m, call, func(a *App) error { return a.checkout(ctx, in.Target, asJSON) })
	})
	for _, state := range []struct{ name, title, state, description string }{
		{"vers.pause", "Pause a VM", "Paused", "Stops the CPUs of a VM; memory is kept."},
		{"vers.resume", "Resume a VM", "Running", "Lets a paused VM run on, or wakes one that sleeps."},
	} {
		mcp.Add(s, mcp.Tool{Name: state.name, Title: state.title, Description: state.description, PerMinute: 30, Idempotent: true},
			func(ctx context.Context, call *mcp.Call, in vmInput) (stateResult, error) {
				return command[stateResult](m, call, func(a *App) error {
					return a.setState(ctx, in.Target, state.state, waitFlags{}, asJSON)
				})
			})
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.sleep", Title: "Put a VM to sleep", PerMinute: 30, Idempotent: true,
		Description: "Puts a running VM to sleep: its state is on disk, its memory free. What needs it wakes it: a command, a file, vers.resume.",
	}, func(ctx context.Context, call *mcp.Call, in vmInput) (stateResult, error) {
		return command[stateResult](m, call, func(a *App) error { return a.sleep(ctx, in.Target, asJSON) })
	})
	type resizeInput struct {
		vmInput
		SizeMiB int64 `json:"sizeMib" jsonschema:"new size of the root disk in MiB, above the present one"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.resize", Title: "Grow a disk", PerMinute: 10,
		Description: "Grows the root disk of a VM and the file system on it, while it runs.",
	}, func(ctx context.Context, call *mcp.Call, in resizeInput) (resizeResult, error) {
		return command[resizeResult](m, call, func(a *App) error { return a.resize(ctx, in.Target, in.SizeMiB, asJSON) })
	})
}

// statusOutput is the result of vers.status, and the content of the resource vers://status.
type statusOutput struct {
	Head *string    `json:"head" jsonschema:"id of the VM that is used where no target is given; null: none"`
	VMs  []vmStatus `json:"vms"`
}

func (m *agentTools) status(ctx context.Context, call *mcp.Call, in vmInput) (statusOutput, error) {
	out := statusOutput{VMs: []vmStatus{}}
	if id, state, err := m.app.folder().Head(); err == nil && state == local.Set {
		out.Head = &id
	}
	if in.Target != "" {
		one, err := command[vmStatus](m, call, func(a *App) error { return a.statusOne(ctx, in.Target, asJSON) })
		if err == nil {
			out.VMs = append(out.VMs, one)
		}
		return out, err
	}
	all, err := command[[]vmStatus](m, call, func(a *App) error { return a.statusAll(ctx, asJSON, pageFlags{}) })
	if err == nil {
		out.VMs = all
	}
	return out, err
}

// statusDocument is the resource vers://status.
func (m *agentTools) statusDocument(ctx context.Context) (string, error) {
	out, err := m.status(ctx, &mcp.Call{}, vmInput{})
	if err != nil {
		return "", err
	}
	data, err := json.MarshalIndent(out, "", "  ")
	return string(data), err
}

type runInput struct {
	MemSizeMiB *int64            `json:"memSizeMib,omitempty" jsonschema:"memory in MiB"`
	VCPUCount  *int64            `json:"vcpuCount,omitempty" jsonschema:"number of virtual CPUs"`
	RootfsName *string           `json:"rootfsName,omitempty" jsonschema:"image; vers.rootfs.list shows them"`
	KernelName *string           `json:"kernelName,omitempty" jsonschema:"kernel"`
	FSSizeMiB  *int64            `json:"fsSizeVmMib,omitempty" jsonschema:"root disk in MiB"`
	VMAlias    string            `json:"vmAlias,omitempty" jsonschema:"name for the VM on this machine; one that exists moves to the new VM"`
	Env        map[string]string `json:"env,omitempty" jsonschema:"variables for /etc/environment of this VM"`
	TTL        string            `json:"ttl,omitempty" jsonschema:"delete the VM after this time, for example 2h or 7d"`
	SleepAfter string            `json:"sleepAfter,omitempty" jsonschema:"let it fall asleep after this time without use, for example 30m; never"`
}

func (m *agentTools) run(ctx context.Context, call *mcp.Call, in runInput) (runResult, error) {
	o := runOptions{alias: in.VMAlias, terms: termsFlags{in.SleepAfter, in.TTL}, format: asJSON, wait: untilReady()}
	given := map[string]bool{"vm-alias": in.VMAlias != ""}
	for _, number := range []struct {
		flag string
		from *int64
		to   *int64
	}{
		{"mem-size", in.MemSizeMiB, &o.size.MemSizeMiB}, {"vcpu-count", in.VCPUCount, &o.size.VCPUCount}, {"fs-size-vm", in.FSSizeMiB, &o.size.FSSizeMiB},
	} {
		if number.from != nil {
			*number.to, given[number.flag] = *number.from, true
		}
	}
	if in.RootfsName != nil {
		o.rootfs, given["rootfs"] = *in.RootfsName, true
	}
	if in.KernelName != nil {
		o.kernel, given["kernel"] = *in.KernelName, true
	}
	for _, key := range slices.Sorted(maps.Keys(in.Env)) {
		o.env = append(o.env, key+"="+in.Env[key])
	}
	o.given = func(names ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return given[name] })
	}
	return command[runResult](m, call, func(a *App) error { return a.run(ctx, o) })
}

// untilReady waits: an agent's next call is a command in the VM.
func untilReady() waitFlags { return waitFlags{wait: true, timeout: 5 * time.Minute} }

type runCommitInput struct {
	Commit  string `json:"commit" jsonschema:"id of a commit, unique beginning of one, repo:tag, or a plain tag"`
	VMAlias string `json:"vmAlias,omitempty" jsonschema:"name for the VM on this machine; one that exists moves to the new VM"`
}

func (m *agentTools) runCommit(ctx context.Context, call *mcp.Call, in runCommitInput) (runCommitResult, error) {
	if err := checkAlias(in.VMAlias); err != nil {
		return runCommitResult{}, err
	}
	_, isRef := ref.ParseReference(in.Commit)
	return command[runCommitResult](m, call, func(a *App) error {
		return a.runCommit(ctx, runCommitOptions{spec: in.Commit, isRef: isRef, alias: in.VMAlias, wait: untilReady(), format: asJSON})
	})
}

// checkAlias is newAlias for a name that may be left out.
func checkAlias(name string) error {
	if name == "" {
		return nil
	}
	return newAlias(name)
}

type branchInput struct {
	Target     string `json:"target,omitempty" jsonschema:"VM (alias or id), commit id, repo:tag or plain tag; HEAD if left out"`
	Alias      string `json:"alias,omitempty" jsonschema:"name for the new VM on this machine; only with count 1"`
	Checkout   bool   `json:"checkout,omitempty" jsonschema:"move HEAD to the (first) new VM"`
	Count      *int   `json:"count,omitempty" jsonschema:"number of new VMs; 1 if left out"`
	KeepPaused bool   `json:"keepPaused,omitempty" jsonschema:"leave the source VM paused"`
}

func (m *agentTools) branch(ctx context.Context, call *mcp.Call, in branchInput) (branchResult, error) {
	if err := checkAlias(in.Alias); err != nil {
		return branchResult{NewIDs: []string{}}, err
	}
	o := branchOptions{source: in.Target, alias: in.Alias, checkout: in.Checkout, count: 1, keepPaused: in.KeepPaused, wait: untilReady(), format: asJSON}
	if in.Count != nil {
		o.count = *in.Count
	}
	_, o.isRef = ref.ParseReference(in.Target)
	return command[branchResult](m, call, func(a *App) error { return a.branch(ctx, o) })
}

type killInput struct {
	Targets          []string `json:"targets,omitempty" jsonschema:"VMs by alias or id; HEAD if left out"`
	SkipConfirmation bool     `json:"skipConfirmation,omitempty" jsonschema:"must be true: the user wants these VMs deleted"`
	Recursive        bool     `json:"recursive,omitempty" jsonschema:"delete the VMs branched from them too, and theirs"`
}

// killOutput is the result of vers.kill.
type killOutput struct {
	Scope        string       `json:"scope" jsonschema:"head or targets"`
	Targets      []string     `json:"targets" jsonschema:"what was asked for; ids"`
	DeletedIDs   []string     `json:"deleted_ids"`
	Failed       []killFailed `json:"failed"`
	AffectedHead bool         `json:"affected_head" jsonschema:"HEAD named a deleted VM and is empty now"`
}

type killFailed struct {
	Target string `json:"target"`
	Error  string `json:"error"`
}

func (m *agentTools) kill(ctx context.Context, call *mcp.Call, in killInput) (killOutput, error) {
	out := killOutput{Scope: "targets", Targets: []string{}, DeletedIDs: []string{}, Failed: []killFailed{}}
	if len(in.Targets) == 0 {
		out.Scope = "head"
	}
	if slices.Contains(in.Targets, "") {
		return out, fault.Invalidf("a target is empty; leave targets out to delete HEAD")
	}
	if err := confirmed(in.SkipConfirmation, "%s", killedWords(in.Targets)); err != nil {
		return out, err
	}
	return filled(&out, m.with(call, func(a *App, client *api.Client) error {
		targets, err := a.killTargets(ctx, client, in, &out)
		if err != nil {
			return err
		}
		result := deleteResult{}
		var failures []error
		for i, t := range targets {
			out.Targets = append(out.Targets, t.ID)
			if err := a.deleteOne(ctx, client, t, i, len(targets), modeJSON, &result); err != nil {
				failures = append(failures, err)
				out.Failed = append(out.Failed, killFailed{t.Name, mcpCode(err) + ": " + err.Error()})
			}
		}
		out.DeletedIDs = append(out.DeletedIDs, result.DeletedIDs...)
		out.AffectedHead = result.HeadCleared
		if len(out.DeletedIDs) == 0 {
			return errors.Join(failures...) // nothing was done: a failure, not a result
		}
		return nil
	}))
}

// killTargets finds the VMs; those of several that cannot be found are noted in out.
func (a *App) killTargets(ctx context.Context, client *api.Client, in killInput, out *killOutput) ([]target, error) {
	if len(in.Targets) < 2 {
		targets, failed, err := a.deleteTargets(ctx, client, deleteOptions{vms: in.Targets, recursive: in.Recursive})
		return targets, errors.Join(err, failed)
	}
	var targets []target
	for _, name := range in.Targets {
		t, err := a.target(ctx, name)
		switch {
		case err != nil:
			out.Failed = append(out.Failed, killFailed{name, mcpCode(err) + ": " + err.Error()})
		case !slices.ContainsFunc(targets, func(other target) bool { return other.ID == t.ID }):
			targets = append(targets, t)
		}
	}
	if len(targets) == 0 {
		return nil, fault.NotFoundf("none of the %d VMs was found: %s", len(in.Targets), out.Failed[0].Error)
	}
	if !in.Recursive {
		return targets, nil
	}
	return a.withDescendants(ctx, client, targets)
}

func killedWords(targets []string) string {
	switch len(targets) {
	case 0:
		return "the VM that HEAD names"
	case 1:
		return fmt.Sprintf("VM '%s'", targets[0])
	}
	return fmt.Sprintf("%d VMs", len(targets))
}
