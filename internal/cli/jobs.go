package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/local"
	"vers/internal/fault"
	"vers/internal/ident"
)

// States of a job.
const (
	jobSubmitted = "submitted"
	jobComplete  = "complete"
	jobFailed    = "failed"
)

// job is one operation that was waited for with --wait. The journal has a line for each of its states; the last counts.
type job struct {
	JobID       string     `json:"job_id"`
	Command     string     `json:"command"`
	VMID        string     `json:"vm_id"`
	Status      string     `json:"status"` // submitted, complete or failed
	SubmittedAt time.Time  `json:"submitted_at"`
	FinishedAt  *time.Time `json:"finished_at"`
	Error       string     `json:"error,omitempty"`
}

// jobJournal is where jobs are kept, on this machine.
func (a *App) jobJournal() local.Journal[job] {
	dir := a.env("VERS_JOBS_DIR")
	if dir == "" {
		dir = filepath.Join(a.Home, ".vers")
	}
	return local.Journal[job]{Path: filepath.Join(dir, "jobs.jsonl")}
}

// waitJob waits for a VM like waitRunning and notes in the journal how that went.
func (a *App) waitJob(ctx context.Context, client *api.Client, command, vmID string, timeout time.Duration) error {
	j := job{JobID: ident.New(), Command: command, VMID: vmID, Status: jobSubmitted, SubmittedAt: time.Now().UTC()}
	a.note(ctx, j)
	err := a.waitRunning(ctx, client, vmID, timeout)
	now := time.Now().UTC()
	j.Status, j.FinishedAt = jobComplete, &now
	if err != nil {
		j.Status, j.Error = jobFailed, err.Error()
	}
	a.note(ctx, j)
	return err
}

func (a *App) note(ctx context.Context, j job) {
	if err := a.jobJournal().Add(ctx, j); err != nil {
		a.warn("the job is not in 'vers jobs': %v", err)
	}
}

// jobs gives the newest state of every job, the newest job first.
func (a *App) jobs() ([]job, error) {
	lines, err := a.jobJournal().All()
	if err != nil {
		return nil, err
	}
	jobs, at := []job{}, map[string]int{}
	for _, j := range lines {
		if i, known := at[j.JobID]; known {
			jobs[i] = j
			continue
		}
		at[j.JobID] = len(jobs)
		jobs = append(jobs, j)
	}
	slices.Reverse(jobs)
	return jobs, nil
}

func (a *App) jobsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use: "jobs", Short: "Show what was waited for with --wait on this machine",
		Long: `Every --wait of run, run-commit, branch and resume is noted in ~/.vers/jobs.jsonl (or in the folder that
VERS_JOBS_DIR names), so that a script that was cut off can be found again.`,
		Example: "  vers jobs list --status failed\n  vers jobs prune --older-than 7d",
	}, a.jobsListCommand(), a.jobsGetCommand(), a.jobsPruneCommand())
}

func (a *App) jobsListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	var status string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the jobs, newest first",
		Example: "  vers jobs list\n  vers jobs list --status submitted --format json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			mode, err := format.mode()
			if err != nil {
				return err
			}
			states := []string{jobSubmitted, jobComplete, jobFailed}
			if status != "" && !slices.Contains(states, status) {
				return fault.Invalidf("unknown status %q: use %s", status, strings.Join(states, ", "))
			}
			all, err := a.jobs()
			if err != nil {
				return err
			}
			all = slices.DeleteFunc(all, func(j job) bool { return status != "" && j.Status != status })
			return listing[job]{
				name:   func(j job) string { return j.JobID },
				header: []string{"JOB ID", "STATUS", "COMMAND", "VM ID", "SUBMITTED"},
				row: func(j job) []string {
					return []string{j.JobID, j.Status, j.Command, j.VMID, when(j.SubmittedAt)}
				},
				empty: "No jobs.",
			}.print(a, mode, pages, all)
		},
	}
	cmd.Flags().StringVar(&status, "status", "", "only those that are submitted, complete or failed")
	_ = cmd.RegisterFlagCompletionFunc("status", cobra.FixedCompletions([]string{jobSubmitted, jobComplete, jobFailed}, noFiles))
	format.addQuiet(cmd, "print ids only")
	pages.add(cmd)
	return cmd
}

func (a *App) jobsGetCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "get <job>", Short: "Show a job",
		Example: "  vers jobs get 3c2f",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			mode, err := format.mode()
			if err != nil {
				return err
			}
			all, err := a.jobs()
			if err != nil {
				return err
			}
			ids := make([]string, len(all))
			for i, j := range all {
				ids[i] = j.JobID
			}
			id, err := unique("job", args[0], strings.ToLower(args[0]), ids)
			if err != nil {
				return err
			}
			j := all[slices.Index(ids, id)]
			finished := ""
			if j.FinishedAt != nil {
				finished = when(*j.FinishedAt)
			}
			return a.show(mode, j.JobID, j, a.fields([][2]string{
				{"Job ID", j.JobID}, {"Status", j.Status}, {"Command", j.Command}, {"VM ID", j.VMID},
				{"Submitted", when(j.SubmittedAt)}, {"Finished", finished}, {"Error", j.Error},
			}))
		},
	}
	format.addQuiet(cmd, "print the id only")
	return cmd
}

func (a *App) jobsPruneCommand() *cobra.Command {
	var format formatFlags
	var olderThan string
	var all, dryRun bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Forget old jobs",
		Example: "  vers jobs prune --older-than 7d\n  vers jobs prune --all --dry-run",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			mode, err := format.mode()
			if err != nil {
				return err
			}
			age, err := days(olderThan)
			if err != nil {
				return err
			}
			if all {
				age = 0
			}
			return a.jobsPrune(cmd.Context(), age, dryRun, mode)
		},
	}
	cmd.Flags().StringVar(&olderThan, "older-than", "7d", "age, for example 12h or 7d")
	cmd.Flags().BoolVar(&all, "all", false, "forget all")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say which")
	format.addQuiet(cmd, "print ids only")
	return cmd
}

// days reads a duration that may be in days.
func days(text string) (time.Duration, error) {
	if number, found := strings.CutSuffix(text, "d"); found {
		if n, err := strconv.Atoi(number); err == nil && n >= 0 && n < 100_000 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fault.Invalidf("invalid age %q: use for example 90m, 12h or 7d", text)
	}
	return d, nil
}

// pruneResult is the JSON output of jobs prune.
type pruneResult struct {
	Pruned []string `json:"pruned"`
	DryRun bool     `json:"dry_run"`
}

func (a *App) jobsPrune(ctx context.Context, age time.Duration, dryRun bool, mode mode) error {
	jobs, err := a.jobs()
	if err != nil {
		return err
	}
	before := time.Now().Add(-age)
	result := pruneResult{Pruned: []string{}, DryRun: dryRun}
	for _, j := range jobs {
		if j.SubmittedAt.Before(before) {
			result.Pruned = append(result.Pruned, j.JobID)
		}
	}
	verb := "would be forgotten"
	if !dryRun && len(result.Pruned) > 0 {
		err := a.jobJournal().Rewrite(ctx, func(lines []job) []job {
			return slices.DeleteFunc(lines, func(j job) bool { return slices.Contains(result.Pruned, j.JobID) })
		})
		if err != nil {
			return err
		}
	}
	if !dryRun {
		verb = "forgotten"
	}
	if mode == modeQuiet {
		return listing[string]{name: func(id string) string { return id }}.print(a, mode, pageFlags{}, result.Pruned)
	}
	return a.show(mode, "", result, func() { fmt.Fprintf(a.Streams.Out, "%d jobs %s\n", len(result.Pruned), verb) })
}
