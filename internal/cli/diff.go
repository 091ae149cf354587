package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
)

type diffOptions struct {
	commits  []string
	path     string
	stat     bool
	nameOnly bool
	exitCode bool
	limit    int
	format   formatFlags
}

const diffLong = `Show which files differ between the disks of two commits, without starting anything. With one commit it is
compared with the one before it: the previous commit of the same VM, else the one that the VM was
started from. Without any, the latest commit of HEAD is taken. A path narrows it to a file or directory.

  A  added    M  changed: content, link target, type, mode, owner or extended attributes    D  removed

Only differences count, not times. A commit's disk is what was on the disk at its instant. 'vers commit' has
a running guest write its files out first; what it writes in the moments after that, and what a VM
held back that was paused, is in the commit's memory and not seen here.

The exit code is 0 whether there are differences or not, unless --exit-code is given.`

const diffExample = `  vers diff 5f0c1a2b my-app:latest
  vers diff my-app:v1 my-app:v2 /etc
  vers diff --stat
  vers diff my-app:v1 my-app:v2 --exit-code -q || echo different`

func (a *App) diffCommand() *cobra.Command {
	var o diffOptions
	cmd := &cobra.Command{
		Use: "diff [commit] [commit] [/path]", Short: "Show which files differ between two commits", Long: diffLong, Example: diffExample,
		Args: arguments(cobra.MaximumNArgs(3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if last := len(args) - 1; last >= 0 && strings.HasPrefix(args[last], "/") {
				args, o.path = args[:last], args[last]
			}
			if len(args) > 2 {
				return usagef("at most two commits can be compared; a path begins with /, which '%s' does not", args[2])
			}
			o.commits = args
			return a.diff(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeCommits,
	}
	f := cmd.Flags()
	f.BoolVar(&o.stat, "stat", false, "only numbers for each directory below /")
	f.BoolVar(&o.nameOnly, "name-only", false, "print paths only, same as -q")
	f.BoolVar(&o.exitCode, "exit-code", false, "exit with 1 if there are differences")
	f.IntVar(&o.limit, "limit", 10_000, "show at most this many, up to 100000")
	o.format.addQuiet(cmd, "print paths only")
	return cmd
}

func (a *App) diff(ctx context.Context, o diffOptions) error {
	mode, client, err := a.begin(o.format)
	if err != nil {
		return err
	}
	if o.nameOnly {
		mode = modeQuiet
	}
	if o.limit < 1 || o.limit > 100_000 {
		return fault.Invalidf("invalid limit %d: 1 to 100000 are possible", o.limit)
	}
	if o.stat {
		o.limit = 100_000
	}
	from, to, err := a.diffCommits(ctx, client, o.commits)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, startLimit, "comparing the commits")
	defer cancel()
	d, err := client.Diff(ctx, from, to, api.DiffOptions{Path: o.path, Limit: o.limit})
	if err != nil {
		return err
	}
	a.printDiff(mode, o.stat, d)
	if o.exitCode && d.Added+d.Removed+d.Changed > 0 {
		return &statusError{exitFailure}
	}
	return nil
}

// diffCommits finds the two commits to compare.
func (a *App) diffCommits(ctx context.Context, client *api.Client, typed []string) (from, to string, err error) {
	if len(typed) == 2 {
		if from, err = a.commitTarget(ctx, typed[0]); err == nil {
			to, err = a.commitTarget(ctx, typed[1])
		}
		return from, to, err
	}
	limited, cancel := limit(ctx, listLimit, "listing the commits")
	defer cancel()
	commits, err := client.Commits(limited) // newest first
	if err != nil {
		return "", "", err
	}
	if len(typed) == 1 {
		to, err = a.commitTarget(ctx, typed[0])
	} else {
		to, err = a.latestOfHead(commits)
	}
	if err != nil {
		return "", "", err
	}
	from, err = commitBefore(commits, to)
	return from, to, err
}

func (a *App) latestOfHead(commits []api.CommitInfo) (string, error) {
	head, err := a.head()
	if err != nil {
		return "", err
	}
	for _, c := range commits {
		if c.ParentVMID != nil && *c.ParentVMID == head.ID {
			return c.CommitID, nil
		}
	}
	return "", fault.NotFoundf("HEAD, VM '%s', has no commit; make one with 'vers commit', or name two commits", head.ID)
}

// commitBefore is the previous commit of the same VM, else the commit that the VM was started from.
func commitBefore(newestFirst []api.CommitInfo, id string) (string, error) {
	for i, c := range newestFirst {
		if c.CommitID != id {
			continue
		}
		for _, older := range newestFirst[i+1:] {
			if c.ParentVMID != nil && older.ParentVMID != nil && *older.ParentVMID == *c.ParentVMID {
				return older.CommitID, nil
			}
		}
		if c.GrandparentCommitID != nil {
			return *c.GrandparentCommitID, nil
		}
	}
	return "", fault.NotFoundf("no commit of yours comes before commit '%s'; name two commits", id)
}

func (a *App) printDiff(mode mode, stat bool, d api.Diff) {
	out := a.Streams.Out
	switch {
	case mode == modeJSON:
		_ = printJSON(out, d)
		return
	case mode == modeQuiet:
		for _, e := range d.Entries {
			fmt.Fprintln(out, pathText(e))
		}
	case stat:
		a.printDiffStat(d)
	default:
		for _, e := range d.Entries {
			fmt.Fprintln(out, diffLine(e))
		}
	}
	if mode == modeText {
		fmt.Fprintf(out, "%d added, %d changed, %d removed; +%s, -%s\n", d.Added, d.Changed, d.Removed, bytesText(d.BytesAdded), bytesText(d.BytesRemoved))
	}
	if d.Truncated {
		a.Streams.note("%d of %d differences shown; name a path, or raise --limit", len(d.Entries), d.Added+d.Changed+d.Removed)
	}
}

var diffLetters = map[string]string{api.DiffAdded: "A", api.DiffChanged: "M", api.DiffRemoved: "D"}

// diffLine shows an entry with what is worth knowing.
func diffLine(e api.DiffEntry) string {
	line := diffLetters[e.Change] + "  " + pathText(e)
	var notes []string
	note := func(name string, from, to *string) {
		if from != nil && to != nil && *from != *to {
			notes = append(notes, fmt.Sprintf("%s %s → %s", name, clean(*from), clean(*to)))
		}
	}
	if e.KindFrom != "" {
		note("type", &e.KindFrom, &e.Kind)
	} else if e.Kind != "file" {
		notes = append(notes, e.Kind)
	}
	for _, what := range e.What {
		switch what {
		case "content":
			notes = append(notes, bytesText(*e.SizeFrom)+" → "+bytesText(*e.SizeTo))
		case "xattrs":
			notes = append(notes, "extended attributes")
		}
	}
	note("mode", e.ModeFrom, e.ModeTo)
	note("owner", e.OwnerFrom, e.OwnerTo)
	note("target", e.TargetFrom, e.TargetTo)
	note("device", e.DeviceFrom, e.DeviceTo)
	for _, size := range []*int64{e.SizeFrom, e.SizeTo} {
		if e.Change != api.DiffChanged && e.Kind == "file" && size != nil {
			notes = append(notes, bytesText(*size))
		}
	}
	if len(notes) == 0 {
		return line
	}
	return line + "  (" + strings.Join(notes, ", ") + ")"
}

// printDiffStat prints numbers for each directory below the root.
func (a *App) printDiffStat(d api.Diff) {
	type numbers struct{ added, changed, removed int }
	all := map[string]*numbers{}
	var order []string
	for _, e := range d.Entries {
		top, _, _ := strings.Cut(strings.TrimPrefix(e.Path, "/"), "/")
		if all[top] == nil {
			all[top] = &numbers{}
			order = append(order, top)
		}
		switch e.Change {
		case api.DiffAdded:
			all[top].added++
		case api.DiffRemoved:
			all[top].removed++
		default:
			all[top].changed++
		}
	}
	var rows [][]string
	for _, top := range order {
		n := all[top]
		rows = append(rows, []string{strconv.Itoa(n.added), strconv.Itoa(n.changed), strconv.Itoa(n.removed), "/" + clean(top)})
	}
	if len(rows) > 0 {
		a.Streams.table([]string{"ADDED", "CHANGED", "REMOVED", "BELOW"}, rows)
	}
}

// pathText is the path, quoted as in Go or C if it holds what could fool a terminal or a script.
func pathText(e api.DiffEntry) string {
	path := e.Path
	if e.PathBytes != nil {
		path = string(e.PathBytes)
	}
	if quoted := strconv.Quote(path); quoted != `"`+path+`"` {
		return quoted
	}
	return path
}

// bytesText shows a size to people.
func bytesText(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	size, unit := float64(n), 0
	for size >= 1024 && unit < 4 {
		size, unit = size/1024, unit+1
	}
	return fmt.Sprintf("%.1f %s", size, [...]string{"B", "KiB", "MiB", "GiB", "TiB"}[unit])
}
