package cli

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
)

type logsOptions struct {
	target      string
	follow, all bool
	format      formatFlags
}

func (a *App) logsCommand() *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use: "logs [vm|alias]", Aliases: []string{"workload-logs"}, Short: "Output of the image's own command in a VM",
		Long: `Show what the command of the VM's image has printed ('vers run --start'), stdout and stderr apart. In a VM
without one, or with --all, it is the output of all commands that were run through vers, in time order.

The VM keeps the newest MiB of every command's output. -f follows it until the command ends.`,
		Example: "  vers logs\n  vers logs -f dev\n  vers logs --all --format json",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target = optional(args)
			return a.logs(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeVMs,
	}
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with what is printed from now on")
	cmd.Flags().BoolVar(&o.all, "all", false, "of all commands")
	o.format.addJSON(cmd)
	return cmd
}

func (a *App) logs(ctx context.Context, o logsOptions) error {
	mode, client, err := a.begin(o.format)
	if err != nil {
		return err
	}
	t, err := a.target(ctx, o.target)
	if err != nil {
		return err
	}
	if t.IsHead {
		a.Streams.note("Using current HEAD VM: %s", t.ID)
	}
	info, err := client.Metadata(ctx, t.ID)
	if err != nil {
		return t.missing(err)
	}
	r := logReader{app: a, client: client, vm: t.ID, follow: o.follow}
	if info.MainExecID != nil && !o.all {
		r.execID = *info.MainExecID
	}
	if mode == modeJSON {
		entries, err := r.kept(ctx)
		if err != nil {
			return t.missing(err)
		}
		return printJSON(a.Streams.Out, entries)
	}
	if o.follow && r.execID != "" {
		return t.missing(r.attach(ctx))
	}
	return t.missing(r.print(ctx))
}

// logReader reads the output of one command, or of all.
type logReader struct {
	app    *App
	client *api.Client
	vm     string
	execID string // "": of all
	follow bool
	offset int64
	misses int // questions in a row that the server has not answered
}

// page gives the entries after the last ones, and whether there are more now.
func (r *logReader) page(ctx context.Context) (entries []api.LogEntry, more bool, err error) {
	list, err := r.client.Logs(ctx, r.vm, api.LogOptions{Offset: r.offset})
	if err != nil {
		return nil, false, err
	}
	r.offset, r.misses = list.NextOffset, 0
	for _, e := range list.Entries {
		if r.execID == "" || e.ExecID == r.execID {
			entries = append(entries, e)
		}
	}
	return entries, !list.EOF, nil
}

// kept gives all entries that are there now.
func (r *logReader) kept(ctx context.Context) ([]api.LogEntry, error) {
	all := []api.LogEntry{}
	for {
		entries, more, err := r.page(ctx)
		if err != nil {
			return nil, err
		}
		if all = append(all, entries...); !more {
			return all, nil
		}
	}
}

// followEvery is how often a VM is asked for new output of all of its commands.
const followEvery = 500 * time.Millisecond

// maxMisses is how many questions in a row may go unanswered: half a minute of them.
const maxMisses = 60

// away reports whether a server that has answered before is away, as one that restarts is, and may come back.
func (r *logReader) away(err error) bool {
	var connect *api.ConnectError
	if !r.follow || r.misses >= maxMisses || !errors.As(err, &connect) && api.StatusOf(err) < http.StatusInternalServerError {
		return false
	}
	r.misses++
	return true
}

// print writes the output, and with follow what comes, until the context ends.
func (r *logReader) print(ctx context.Context) error {
	for {
		entries, more, err := r.page(ctx)
		if err != nil && !r.away(err) {
			return err
		}
		for _, e := range entries {
			to := r.app.Streams.Out
			if e.Stream == api.Stderr {
				to = r.app.Streams.Err
			}
			if _, err := to.Write(e.Data); err != nil {
				return err
			}
		}
		if more {
			continue
		}
		if !r.follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(followEvery):
		}
	}
}

// attach follows one command until it ends.
func (r *logReader) attach(ctx context.Context) error {
	out := r.app.Streams
	code, err := r.client.Follow(ctx, r.vm, r.execID, out.Out, out.Err, func(text string) { out.note("%s", text) })
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil && code != 0:
		out.note("The command ended with exit code %d.", code)
	}
	return err
}
