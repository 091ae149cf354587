package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
)

type deleteOptions struct {
	vms       []string
	yes       bool
	recursive bool
	all       bool
	format    formatFlags
}

func (a *App) deleteCommand() *cobra.Command {
	var o deleteOptions
	var cluster string
	cmd := &cobra.Command{
		Use: "delete [vm|alias]...", Aliases: []string{"kill"}, Short: "Delete VMs",
		Long: `Delete VMs (default: HEAD). Their commits and the VMs branched from them live on; aliases of a deleted VM
are dropped and HEAD is cleared if it named it.

You are asked first if this is a terminal; in scripts nothing is asked. --all needs --yes in scripts.`,
		Example: `  vers kill dev
  vers kill -y $(vers status -q)
  vers kill -r base       # and everything branched from it`,
		Args: arguments(cobra.ArbitraryArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("cluster") {
				a.Streams.note("note: --cluster is ignored, there are no clusters any more")
			}
			o.vms = args
			return a.delete(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeVMs,
	}
	f := cmd.Flags()
	f.BoolVarP(&o.yes, "yes", "y", false, "ask nothing")
	f.BoolVarP(&o.recursive, "recursive", "r", false, "delete the VMs branched from it too, and theirs")
	f.BoolVarP(&o.all, "all", "a", false, "delete all VMs of the organisation")
	f.StringVarP(&cluster, "cluster", "c", "", "ignored: there are no clusters any more")
	_ = f.MarkHidden("cluster")
	f.Lookup("cluster").NoOptDefVal = "true"
	o.format.add(cmd)
	return cmd
}

// deleteResult is the JSON output of delete.
type deleteResult struct {
	DeletedIDs  []string `json:"deleted_ids"`
	FailedIDs   []string `json:"failed_ids"`
	HeadCleared bool     `json:"head_cleared"`
}

func (a *App) delete(ctx context.Context, o deleteOptions) error {
	mode, err := o.format.mode()
	switch {
	case err != nil:
		return err
	case o.all && len(o.vms) > 0:
		return fault.Invalidf("give VMs or --all, not both")
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	targets, failed, err := a.deleteTargets(ctx, client, o)
	if err != nil {
		return err
	}
	if err := a.confirmDelete(targets, o); err != nil {
		return err
	}
	result := deleteResult{DeletedIDs: []string{}, FailedIDs: []string{}}
	first := failed
	for i, t := range targets {
		err := a.deleteOne(ctx, client, t, i, len(targets), mode, &result)
		var signalled *signalError
		switch {
		case errors.As(err, &signalled):
			return err
		case err != nil && len(targets) == 1 && failed == nil && mode != modeJSON:
			return err
		case err != nil:
			result.FailedIDs = append(result.FailedIDs, t.ID)
			a.printError(err)
			if first == nil {
				first = &statusError{exitCode(err)}
			}
		}
	}
	if mode == modeJSON {
		return errors.Join(first, printJSON(a.Streams.Out, result))
	}
	if mode == modeText && (len(o.vms) > 1 || len(targets) > 1) {
		failures := len(result.FailedIDs)
		if failed != nil {
			failures += len(o.vms) - len(targets)
		}
		fmt.Fprintf(a.Streams.Out, "%d deleted, %d failed\n", len(result.DeletedIDs), max(failures, 0))
	}
	return first
}

// deleteTargets finds the VMs. With several names those that cannot be found are reported and left out; failed then
// carries the first one's exit code.
func (a *App) deleteTargets(ctx context.Context, client *api.Client, o deleteOptions) (targets []target, failed, err error) {
	switch {
	case o.all:
		limited, cancel := limit(ctx, listLimit, "listing the VMs")
		defer cancel()
		vms, err := client.VMs(limited)
		for _, vm := range vms {
			targets = append(targets, target{ID: vm.VMID, Name: vm.VMID})
		}
		return targets, nil, err
	case len(o.vms) == 0:
		t, err := a.head()
		if err != nil {
			return nil, nil, err
		}
		targets = []target{t}
	default:
		seen := map[string]bool{}
		failed = a.each(o.vms, func(name string) error {
			t, err := a.target(ctx, name)
			if err == nil && !seen[t.ID] {
				seen[t.ID] = true
				targets = append(targets, t)
			}
			return err
		})
		if len(o.vms) == 1 && failed != nil {
			return nil, nil, failed
		}
	}
	if o.recursive {
		targets, err = a.withDescendants(ctx, client, targets)
	}
	return targets, failed, err
}

// withDescendants adds the VMs that were started from commits of the targets, and theirs.
func (a *App) withDescendants(ctx context.Context, client *api.Client, targets []target) ([]target, error) {
	ctx, cancel := limit(ctx, listLimit, "listing the VMs")
	defer cancel()
	vms, err := client.VMs(ctx)
	if err != nil {
		return nil, err
	}
	commits, err := client.Commits(ctx)
	if err != nil {
		return nil, err
	}
	source := map[string]string{} // commit to the VM it was taken of
	for _, c := range commits {
		if c.ParentVMID != nil {
			source[c.CommitID] = *c.ParentVMID
		}
	}
	children := map[string][]string{}
	for _, vm := range vms {
		if vm.Parent != nil && source[*vm.Parent] != "" {
			parent := source[*vm.Parent]
			children[parent] = append(children[parent], vm.VMID)
		}
	}
	seen := map[string]bool{}
	for _, t := range targets {
		seen[t.ID] = true
	}
	for i := 0; i < len(targets); i++ {
		for _, child := range children[targets[i].ID] {
			if !seen[child] {
				seen[child] = true
				targets = append(targets, target{ID: child, Name: child})
			}
		}
	}
	return targets, nil
}

// confirmDelete asks, if somebody is there to answer.
func (a *App) confirmDelete(targets []target, o deleteOptions) error {
	asking := a.Streams.InTTY && a.Streams.ErrTTY
	switch {
	case o.yes || len(targets) == 0:
		return nil
	case o.all && !asking:
		return fault.Invalidf("--all would delete %d VMs; confirm with --yes", len(targets))
	case !asking:
		return nil
	case o.all:
		answer, err := a.Streams.ask(fmt.Sprintf("Warning: all %d VMs will be deleted.\nType their number to go on: ", len(targets)))
		if err != nil {
			return err
		}
		if answer != fmt.Sprint(len(targets)) {
			return errDeclined
		}
		return nil
	}
	for _, t := range targets {
		a.warn("VM %s will be deleted", t.describe())
	}
	answer, err := a.Streams.ask("Proceed [y/N]: ")
	if err != nil {
		return err
	}
	if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
		return errDeclined
	}
	return nil
}

func (a *App) deleteOne(ctx context.Context, client *api.Client, t target, i, n int, mode mode, result *deleteResult) error {
	prefix := ""
	if n > 1 {
		prefix = fmt.Sprintf("[%d/%d] ", i+1, n)
	}
	stop := a.Streams.progress("%sDeleting VM '%s'", prefix, t.ID)
	limited, cancel := limit(ctx, commitLimit, "deleting the VM")
	err := client.DeleteVM(limited, t.ID)
	cancel()
	stop()
	if err != nil && !api.IsNotFound(err) {
		return err
	}
	// A VM that is gone leaves no names behind, whoever deleted it.
	if aliasErr := a.aliases().RemoveVM(ctx, t.ID); aliasErr != nil {
		a.warn("the aliases of VM '%s' were not dropped: %v", t.ID, aliasErr)
	}
	cleared, headErr := a.folder().ClearHead(t.ID)
	if headErr != nil {
		a.warn("HEAD was not cleared: %v", headErr)
	}
	if err != nil {
		return t.missing(err)
	}
	result.DeletedIDs = append(result.DeletedIDs, t.ID)
	result.HeadCleared = result.HeadCleared || cleared
	switch mode {
	case modeJSON:
		return nil
	case modeQuiet:
		fmt.Fprintln(a.Streams.Out, t.ID)
		return nil
	}
	fmt.Fprintf(a.Streams.Out, "%s✓ VM '%s' deleted\n", prefix, t.ID)
	if cleared {
		fmt.Fprintln(a.Streams.Out, "HEAD cleared (VM was deleted)")
	}
	return nil
}
