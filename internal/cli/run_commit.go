package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
	"vers/internal/config"
	"vers/internal/fault"
	"vers/internal/ident"
)

type runCommitOptions struct {
	spec    string
	isRef   bool
	alias   string
	network networkFlags
	terms   termsFlags
	wait    waitFlags
	format  formatFlags
}

func (a *App) runCommitCommand() *cobra.Command {
	var o runCommitOptions
	cmd := &cobra.Command{
		Use: "run-commit <commit|tag|repo:tag>", Short: "Start a VM from a commit",
		Long: `Start a new VM from a commit: memory, processes and disk go on from where they were when the commit was
made. Every call gives an independent VM. Sizes, and what it may reach, come from the commit. HEAD moves to
the new VM.

The commit is named by its id (or a unique beginning of it), by a plain tag, or with --ref by a tag of a
repository of your organisation. An alias that exists already moves to the new VM.`,
		Example: `  vers run-commit 5f0c1a2b --vm-alias smoke
  vers run-commit golden
  vers run-commit my-app:latest --ref --vm-alias my-dev --wait`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.spec = args[0]
			if o.alias != "" || cmd.Flags().Changed("vm-alias") {
				if err := newAlias(o.alias); err != nil {
					return err
				}
			}
			return a.runCommit(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeCommits,
	}
	cmd.Flags().BoolVar(&o.isRef, "ref", false, "the argument is repo:tag")
	cmd.Flags().StringVarP(&o.alias, "vm-alias", "N", "", "alias for the VM, on this machine")
	o.network.add(cmd)
	o.terms.add(cmd)
	o.wait.add(cmd, "return when commands can run in the VM")
	o.format.add(cmd)
	return cmd
}

// runCommitResult is the JSON output of run-commit.
type runCommitResult struct {
	VMID      string `json:"vm_id"`
	Head      string `json:"head"`
	CommitKey string `json:"commit_key"` // what was typed
	Alias     string `json:"alias,omitempty"`
	CommitID  string `json:"commit_id,omitempty"`
}

func (a *App) runCommit(ctx context.Context, o runCommitOptions) error {
	mode, err := o.format.mode()
	if err != nil {
		return err
	}
	if err := checkCommitSpec("run-commit", o.spec, o.isRef); err != nil {
		return err
	}
	terms, err := o.terms.read()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	req, err := a.commitRequest(ctx, o)
	if err != nil {
		return err
	}
	if req.NetworkOptions, err = o.network.options(config.Project{}, o.alias); err != nil { // the commit says the rest
		return err
	}
	req.Terms = terms
	vm, err := a.fromCommit(ctx, client, o.spec, req)
	if err != nil {
		return err
	}
	if err := a.started(ctx, client, "run-commit", vm.VMID, o.alias, o.wait); err != nil {
		return err
	}
	result := runCommitResult{VMID: vm.VMID, Head: vm.VMID, CommitKey: o.spec, Alias: o.alias, CommitID: vm.CommitID}
	if result.CommitID == "" && req.CommitID != nil {
		result.CommitID = *req.CommitID
	}
	return a.show(mode, vm.VMID, result, func() {
		fmt.Fprintf(a.Streams.Out, "VM '%s' started successfully from commit %s.\n", vm.VMID, o.spec)
		fmt.Fprintf(a.Streams.Out, "HEAD now points to: %s (from commit %s)\n", vm.VMID, o.spec)
	})
}

func (a *App) fromCommit(ctx context.Context, client *api.Client, spec string, req api.FromCommitRequest) (api.NewVM, error) {
	stop := a.Streams.progress("Sending request to start VM from commit %s", spec)
	defer stop()
	ctx, cancel := limit(ctx, 5*startLimit, "starting the VM")
	defer cancel()
	vm, err := client.FromCommit(ctx, req)
	if api.IsNotFound(err) && req.TagName != nil {
		return vm, rewordf(err, "commit '%s' not found: it is neither a commit id nor a tag ('vers commit list' and 'vers tag list' show them; repo:tag needs --ref)", spec)
	}
	return vm, err
}

// commitRequest turns what was typed into exactly one of id, plain tag and reference.
func (a *App) commitRequest(ctx context.Context, o runCommitOptions) (api.FromCommitRequest, error) {
	if o.isRef {
		return api.FromCommitRequest{Ref: &o.spec}, nil
	}
	if _, ok := ref.Prefix(o.spec); !ok && ident.ValidName(o.spec, ident.PlainTagName) {
		return api.FromCommitRequest{TagName: &o.spec}, nil
	}
	id, err := a.commitTarget(ctx, o.spec)
	return api.FromCommitRequest{CommitID: &id}, err
}

// checkCommitSpec refuses, before anything is sent, references without --ref and --ref without a reference.
func checkCommitSpec(command, spec string, isRef bool) error {
	_, shaped := ref.ParseReference(spec)
	switch {
	case ref.IsForeign(spec):
		return fault.Invalidf("'%s' is a tag of another organisation: fork it first with 'vers repo fork %s', then use your own repo:tag", spec, spec)
	case isRef && !shaped:
		return fault.Invalidf("'%s' is not a reference: --ref expects repo:tag, for example my-app:latest", spec)
	case !isRef && shaped:
		return fault.Invalidf("'%s' is a reference to a tag: use 'vers %s %s --ref'", spec, command, spec)
	case spec == "":
		return fault.Invalidf("the commit is empty; name a commit id or, with --ref, repo:tag")
	}
	return nil
}
