package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
	"vers/internal/config"
	"vers/internal/fault"
	"vers/internal/ident"
)

type branchOptions struct {
	source     string
	isRef      bool
	alias      string
	checkout   bool
	count      int
	keepPaused bool
	network    networkFlags
	terms      termsFlags
	wait       waitFlags
	format     formatFlags
}

func (a *App) branchCommand() *cobra.Command {
	var o branchOptions
	cmd := &cobra.Command{
		Use: "branch [vm|commit|tag]", Short: "Make copies of a running VM that go on from here",
		Long: `Make new VMs from a VM (default: HEAD) or a commit. Memory, processes and disk of the children are those
of the source at one instant; the source stands still for some milliseconds and runs on.

HEAD does not move unless --checkout is given.`,
		Example: `  vers branch                     # one child of HEAD
  vers branch dev -n experiment   # with an alias
  vers branch dev --count 10
  vers branch my-app:latest --ref -c`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.source = optional(args)
			if o.alias != "" || cmd.Flags().Changed("alias") {
				if err := newAlias(o.alias); err != nil {
					return err
				}
			}
			return a.branch(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeVMsAndCommits,
	}
	f := cmd.Flags()
	f.StringVarP(&o.alias, "alias", "n", "", "alias for the new VM")
	f.BoolVarP(&o.checkout, "checkout", "c", false, "move HEAD to the (first) new VM")
	f.IntVar(&o.count, "count", 1, "number of new VMs")
	f.BoolVar(&o.isRef, "ref", false, "the argument is repo:tag")
	f.BoolVar(&o.keepPaused, "keep-paused", false, "leave the source VM paused")
	o.network.add(cmd)
	o.terms.add(cmd)
	o.wait.add(cmd, "return when commands can run in the new VMs")
	o.format.addQuiet(cmd, "print the new ids only")
	return cmd
}

// branchResult is the JSON output of branch.
type branchResult struct {
	FromID       string      `json:"from_id"`
	FromName     string      `json:"from_name"`
	NewID        string      `json:"new_id,omitempty"` // if there is one child
	NewIDs       []string    `json:"new_ids"`
	NewAlias     string      `json:"new_alias,omitempty"`
	NewState     string      `json:"new_state,omitempty"`
	CheckoutDone bool        `json:"checkout_done"`
	UsedHead     bool        `json:"used_head"`
	CommitID     string      `json:"commit_id,omitempty"`
	Timing       *api.Timing `json:"timing,omitempty"`
}

// branchSource is where children come from: a VM or commit id, a reference, or a plain tag.
type branchSource struct {
	target
	reference *ref.Reference
	tag       string
}

func (a *App) branch(ctx context.Context, o branchOptions) error {
	mode, err := o.format.mode()
	switch {
	case err != nil:
		return err
	case o.count < 1:
		return fault.Invalidf("invalid count %d (must be at least 1)", o.count)
	case o.alias != "" && o.count > 1:
		return fault.Invalidf("--alias names one VM, but --count is %d; set aliases afterwards with 'vers alias set'", o.count)
	case o.isRef && o.source == "":
		return fault.Invalidf("--ref needs the reference as argument: vers branch repo:tag --ref")
	}
	if o.source != "" {
		if err := checkCommitSpec("branch", o.source, o.isRef); err != nil {
			return err
		}
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	source, err := a.branchSource(ctx, client, o)
	if err != nil {
		return err
	}
	made, err := a.makeBranches(ctx, client, source, o)
	if err != nil {
		return err
	}
	result := branchResult{
		FromID: source.ID, FromName: source.Name, NewAlias: o.alias, UsedHead: source.IsHead,
		CommitID: made.CommitID, Timing: made.Timing, NewIDs: []string{}, NewState: api.StateRunning,
	}
	for _, vm := range made.VMs {
		result.NewIDs = append(result.NewIDs, vm.VMID)
	}
	if len(result.NewIDs) != o.count {
		return fmt.Errorf("the server made %d VMs instead of %d: %v", len(result.NewIDs), o.count, result.NewIDs)
	}
	if o.count == 1 {
		result.NewID = result.NewIDs[0]
	}
	if err := a.finishBranch(ctx, client, o, &result); err != nil {
		return err
	}
	return a.show(mode, strings.Join(result.NewIDs, "\n"), result, func() { a.printBranch(result) })
}

// finishBranch sets alias and HEAD and waits.
func (a *App) finishBranch(ctx context.Context, client *api.Client, o branchOptions, result *branchResult) error {
	first := result.NewIDs[0]
	if o.alias != "" {
		if err := a.setAlias(ctx, o.alias, first); err != nil {
			return err
		}
	}
	if o.checkout {
		if err := a.moveHead(first); err != nil {
			return err
		}
		result.CheckoutDone = true
	}
	if o.wait.wait {
		for _, id := range result.NewIDs {
			if err := a.waitJob(ctx, client, "branch", id, o.wait.timeout); err != nil {
				return fmt.Errorf("waiting for VM '%s': %w", id, err)
			}
		}
	}
	return nil
}

func (a *App) printBranch(r branchResult) {
	out := a.Streams.Out
	if r.UsedHead {
		fmt.Fprintf(out, "Using current HEAD VM: %s\n", r.FromID)
	}
	if r.NewID != "" {
		fmt.Fprintf(out, "✓ Branched from %s\n", r.FromName)
		fmt.Fprintf(out, "VM ID: %s\n", r.NewID)
	} else {
		fmt.Fprintf(out, "✓ %d VMs branched from %s\n", len(r.NewIDs), r.FromName)
		for _, id := range r.NewIDs {
			fmt.Fprintln(out, id)
		}
	}
	if r.NewAlias != "" {
		fmt.Fprintf(out, "Alias: %s\n", r.NewAlias)
	}
	if r.CheckoutDone {
		fmt.Fprintf(out, "HEAD now points to: %s\n", r.NewIDs[0])
		return
	}
	name := r.NewIDs[0]
	if r.NewAlias != "" {
		name = r.NewAlias
	}
	fmt.Fprintf(out, "Use 'vers checkout %s' to switch to it\n", name)
}

// branchSource finds what is to be branched.
func (a *App) branchSource(ctx context.Context, client *api.Client, o branchOptions) (branchSource, error) {
	if reference, ok := ref.ParseReference(o.source); ok && o.isRef {
		return branchSource{target: target{Name: o.source, ID: o.source}, reference: &reference}, nil
	}
	prefix, isPrefix := ref.Prefix(o.source)
	if o.source == "" || !isPrefix {
		t, err := a.target(ctx, o.source)
		if fault.Is(err, fault.NotFound) && ident.ValidName(o.source, 64) {
			return branchSource{target: target{Name: o.source, ID: o.source}, tag: o.source}, nil
		}
		return branchSource{target: t}, err
	}
	if t, ok, err := a.localTarget(o.source); ok || err != nil {
		return branchSource{target: t}, err
	}
	ctx, cancel := limit(ctx, listLimit, "finding the source")
	defer cancel()
	vms, err := client.VMs(ctx)
	if err != nil {
		return branchSource{}, err
	}
	commits, err := client.Commits(ctx)
	if err != nil {
		return branchSource{}, err
	}
	var ids []string
	for _, vm := range vms {
		ids = append(ids, vm.VMID)
	}
	for _, commit := range commits {
		ids = append(ids, commit.CommitID)
	}
	id, err := unique("VM or commit", o.source, prefix, ids)
	return branchSource{target: target{ID: id, Name: o.source}}, err
}

func (a *App) makeBranches(ctx context.Context, client *api.Client, source branchSource, o branchOptions) (api.NewVMs, error) {
	terms, err := o.terms.read()
	if err != nil {
		return api.NewVMs{}, err
	}
	stop := a.Streams.progress("Creating %d new VM(s) from %s", o.count, source.Name)
	defer stop()
	ctx, cancel := limit(ctx, startLimit+time.Duration(o.count)*2*time.Second, "branching")
	defer cancel()
	network, err := o.network.options(config.Project{}, o.alias) // the source says the rest
	if err != nil {
		return api.NewVMs{}, err
	}
	options := api.BranchOptions{Count: o.count, KeepPaused: o.keepPaused, Network: network, Terms: terms}
	switch {
	case source.reference != nil:
		return client.BranchRef(ctx, source.reference.Repo, source.reference.Tag, options)
	case source.tag != "":
		made, err := client.BranchTag(ctx, source.tag, options)
		if api.IsNotFound(err) {
			err = rewordf(err, "'%s' not found: it is neither an alias on this machine nor the id of a VM or commit", source.tag)
		}
		return made, err
	}
	made, err := client.Branch(ctx, source.ID, options)
	if source.Alias != "" || source.IsHead {
		err = source.missing(err)
	}
	return made, err
}
