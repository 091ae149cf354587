package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/config"
	"vers/internal/fault"
)

type runOptions struct {
	size           config.Machine
	image          string // positional
	rootfs, kernel string
	alias          string
	env            []string
	cold, detach   bool
	start          bool // the image's own command
	local          bool // image is one of this machine's Docker
	network        networkFlags
	terms          termsFlags
	wait           waitFlags
	format         formatFlags
	given          func(names ...string) bool // whether one of these flags was given
}

func (a *App) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use: "run [IMAGE]", Short: "Start a new VM",
		Long: `Start a new root VM from an image. HEAD moves to it.

Sizes, image and kernel come from the flags, else from vers.toml in this folder (or ~/.vers/vers.toml),
else they are 512 MiB, 1 CPU, 1024 MiB of disk, image "default", kernel "default.bin".

Only the first VM of an image and sizes really boots; later ones go on from the state right after
that boot. --cold boots in any case.`,
		Example: `  vers run
  vers run --vm-alias dev --wait
  vers run --mem-size 2048 --vcpu-count 4 --rootfs custom-image
  vers run --config vers-dev.toml
  vers run --egress allow=*.debian.org:80,443  # reaches nothing else
  vers run -N db --internal                    # others that are --internal reach it as db.internal
  vers run --rootfs my-app --start             # with its ENTRYPOINT and CMD running
  vers run --ttl 2h --sleep-after 30m           # deleted after two hours, asleep when nobody uses it
  vers run --local my-image:dev                # an image of this machine's Docker
  ID=$(vers run --format json | jq -r .vm_id)`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.image = optional(args)
			o.given = givenFlags(cmd)
			return a.run(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeImages,
	}
	o.add(a, cmd)
	f := cmd.Flags()
	f.BoolVar(&o.local, "local", false, "IMAGE is one of the Docker (or Podman) of this machine: import it first")
	f.StringP("cluster-alias", "n", "", "ignored: there are no clusters any more")
	f.Int64("fs-size-cluster", 0, "ignored: there are no clusters any more")
	f.Int64("size-cluster", 0, "ignored: there are no clusters any more")
	for _, name := range []string{"cluster-alias", "fs-size-cluster", "size-cluster"} {
		_ = f.MarkHidden(name)
	}
	return cmd
}

// givenFlags tells whether one of some flags was given.
func givenFlags(cmd *cobra.Command) func(names ...string) bool {
	return func(names ...string) bool {
		for _, name := range names {
			if cmd.Flags().Changed(name) {
				return true
			}
		}
		return false
	}
}

// add adds the flags that run and up have in common.
func (o *runOptions) add(a *App, cmd *cobra.Command) {
	f := cmd.Flags()
	f.Int64Var(&o.size.MemSizeMiB, "mem-size", 0, "memory in MiB")
	f.Int64Var(&o.size.VCPUCount, "vcpu-count", 0, "number of virtual CPUs")
	f.Int64Var(&o.size.FSSizeMiB, "fs-size-vm", 0, "root disk in MiB")
	f.StringVar(&o.rootfs, "rootfs", "", "rootfs image")
	f.StringVar(&o.kernel, "kernel", "", "kernel")
	f.StringVarP(&o.alias, "vm-alias", "N", "", "alias for the VM, on this machine")
	f.StringArrayVarP(&o.env, "env", "e", nil, "variable for this VM: KEY=VALUE, or KEY to take it from here (repeatable)")
	f.BoolVar(&o.cold, "cold", false, "really boot")
	f.BoolVar(&o.start, "start", false, "start the image's own command (ENTRYPOINT, CMD); 'vers logs' shows its output")
	f.BoolVarP(&o.detach, "detach", "d", false, "same as --quiet: print only the VM's id")
	o.network.add(cmd)
	o.terms.add(cmd)
	o.wait.add(cmd, "return when commands can run in the VM")
	o.format.add(cmd)

	// The spellings of other generations of this program.
	f.Int64Var(&o.size.MemSizeMiB, "memory-mib", 0, "same as --mem-size")
	f.Int64Var(&o.size.VCPUCount, "cpus", 0, "same as --vcpu-count")
	f.Int64Var(&o.size.FSSizeMiB, "disk-mib", 0, "same as --fs-size-vm")
	f.StringVar(&o.alias, "name", "", "same as --vm-alias")
	for _, name := range []string{"memory-mib", "cpus", "disk-mib", "name"} {
		_ = f.MarkHidden(name)
	}
	_ = cmd.RegisterFlagCompletionFunc("rootfs", a.completeImages)
}

// check refuses what needs no server to be refused.
func (o *runOptions) check(a *App) error {
	for _, name := range []string{"cluster-alias", "fs-size-cluster", "size-cluster"} {
		if o.given(name) {
			a.Streams.note("note: --%s is ignored, there are no clusters any more", name)
		}
	}
	if o.alias != "" || o.given("vm-alias", "name") {
		return newAlias(o.alias)
	}
	return nil
}

// runResult is the JSON output of run.
type runResult struct {
	VMID  string `json:"vm_id"`
	Alias string `json:"alias,omitempty"`
	Head  string `json:"head"`
}

func (a *App) run(ctx context.Context, o runOptions) error {
	mode, err := o.format.mode()
	if err != nil {
		return err
	}
	if err := o.check(a); err != nil {
		return err
	}
	if o.local {
		if o.image, err = a.importForRun(ctx, o); err != nil {
			return err
		}
	}
	vm, err := a.startRoot(ctx, o)
	if err != nil {
		return err
	}
	if o.detach && mode == modeText {
		mode = modeQuiet
	}
	return a.show(mode, vm.VMID, vm, a.sayStarted(vm))
}

// importForRun brings an image of the local Docker to the server and gives its name there.
func (a *App) importForRun(ctx context.Context, o runOptions) (string, error) {
	if o.image == "" {
		return "", fault.Invalidf("--local needs the name of an image of the local Docker: vers run --local IMAGE")
	}
	if _, err := a.rootRequest(o); err != nil { // before anything is uploaded
		return "", err
	}
	a.quietProject = true
	name := imageNameOf(o.image)
	_, err := a.importLocal(ctx, importOptions{source: o.image, name: name, replace: true})
	return name, err
}

// startRoot starts a VM and does what belongs to that: HEAD, alias, waiting.
func (a *App) startRoot(ctx context.Context, o runOptions) (runResult, error) {
	req, err := a.rootRequest(o)
	if err != nil {
		return runResult{}, err
	}
	client, err := a.api()
	if err != nil {
		return runResult{}, err
	}
	vm, err := a.newRoot(ctx, client, req)
	if err != nil {
		return runResult{}, err
	}
	return runResult{VMID: vm.VMID, Alias: o.alias, Head: vm.VMID}, a.started(ctx, client, "run", vm.VMID, o.alias, o.wait)
}

func (a *App) sayStarted(vm runResult) func() {
	return func() {
		fmt.Fprintf(a.Streams.Out, "VM '%s' started successfully.\n", vm.VMID)
		fmt.Fprintf(a.Streams.Out, "HEAD now points to: %s\n", vm.VMID)
	}
}

func (a *App) newRoot(ctx context.Context, client *api.Client, req api.NewRootRequest) (api.NewVM, error) {
	stop := a.Streams.progress("Sending request to start VM")
	defer stop()
	ctx, cancel := limit(ctx, startLimit, "starting the VM")
	defer cancel()
	return client.NewRoot(ctx, req, false)
}

// rootRequest merges flags, file and built-in values, in this order, and checks the result.
func (a *App) rootRequest(o runOptions) (api.NewRootRequest, error) {
	project, err := a.project(true)
	if err != nil {
		return api.NewRootRequest{}, err
	}
	size := project.Machine
	for _, s := range []struct {
		to    *int64
		value int64
		flags []string
	}{
		{&size.MemSizeMiB, o.size.MemSizeMiB, []string{"mem-size", "memory-mib"}},
		{&size.VCPUCount, o.size.VCPUCount, []string{"vcpu-count", "cpus"}},
		{&size.FSSizeMiB, o.size.FSSizeMiB, []string{"fs-size-vm", "disk-mib"}},
	} {
		if o.given(s.flags...) {
			*s.to = s.value
		}
	}
	if err := checkSizes(size); err != nil {
		return api.NewRootRequest{}, err
	}
	image, kernel := project.RootFS.Name, project.Kernel.Name
	disk := &size.FSSizeMiB
	if !project.FSSizeGiven && !o.given("fs-size-vm", "disk-mib") {
		disk = nil // the usual size, or as much as the image needs
	}
	if o.given("kernel") {
		kernel = o.kernel
	}
	switch {
	case o.image != "" && o.given("rootfs") && o.image != o.rootfs:
		return api.NewRootRequest{}, fault.Invalidf("two images are named, '%s' and --rootfs '%s'; give one", o.image, o.rootfs)
	case o.image != "":
		image = o.image
	case o.rootfs != "" || o.given("rootfs"):
		image = o.rootfs
	}
	env, err := a.runEnv(o.env)
	if err != nil {
		return api.NewRootRequest{}, err
	}
	network, err := o.network.options(project, o.alias)
	if err != nil {
		return api.NewRootRequest{}, err
	}
	terms, err := o.terms.read()
	if err != nil {
		return api.NewRootRequest{}, err
	}
	return api.NewRootRequest{
		NetworkOptions: network,
		VMConfig: api.VMConfig{
			MemSizeMiB: &size.MemSizeMiB, VCPUCount: &size.VCPUCount, FSSizeMiB: disk,
			ImageName: &image, KernelName: &kernel,
		},
		Env: env, Cold: o.cold, Start: o.start, Terms: terms,
	}, nil
}

// runEnv reads KEY=VALUE and KEY; a KEY that is not set here is left out.
func (a *App) runEnv(pairs []string) (map[string]string, error) {
	var env map[string]string
	for _, pair := range pairs {
		key, value, hasValue := strings.Cut(pair, "=")
		if err := checkEnvKey(key); err != nil {
			return nil, err
		}
		if !hasValue {
			var set bool
			if value, set = a.Env(key); !set {
				continue
			}
		}
		if err := checkEnvValue(key, value); err != nil {
			return nil, err
		}
		if env == nil {
			env = map[string]string{}
		}
		env[key] = value
	}
	return env, nil
}
