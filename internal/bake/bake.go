// Package bake makes the supported images (folder images): builds each from its definition in the organisation that
// publishes them, starts a machine from the outcome, checks it, and publishes it as a public repository. It works through
// the API like any other client.
package bake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"vers/api"
)

// Options of a run.
type Options struct {
	Client      *api.Client // acts for the organisation that publishes
	Definitions fs.FS
	Images      []string // names; none: all
	Host        *Host    // what builds need to reach this host's package sources; nil: nothing
	IfChanged   bool     // leave out what is published and would be built of the same definition and base
	NoCache     bool     // run every step again; else those of the same day are not
	Keep        int      // dated tags that stay, the newest; 0: all
	Verbose     bool     // say what builds print
	Now         time.Time
	Say         func(image, line string)
}

// order is that of images which others copy from.
var order = []string{"node", "python", "rust", "go", "pi-agent", "cc-agent"}

// Outcome is what became of one image.
type Outcome struct {
	Image   string
	Commit  string // "" it failed
	Skipped bool   // nothing has changed
	Err     error
	Took    time.Duration
}

// Run bakes images one after the other. One that fails does not stop the others. The error is that of a request that makes
// no sense; what became of each image is in its outcome.
func Run(ctx context.Context, o Options) ([]Outcome, error) {
	known, err := names(o.Definitions)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(known, o.Images)
	if err != nil {
		return nil, err
	}
	outcomes := make([]Outcome, 0, len(chosen))
	for _, name := range chosen {
		if ctx.Err() != nil {
			return outcomes, ctx.Err()
		}
		began := time.Now()
		b := &baking{Options: o, name: name}
		out := Outcome{Image: name}
		out.Commit, out.Skipped, out.Err = b.bake(ctx)
		out.Took = time.Since(began)
		if out.Err != nil {
			b.say("FAILED: %v", out.Err)
		}
		outcomes = append(outcomes, out)
	}
	return outcomes, nil
}

// baking is the work on one image.
type baking struct {
	Options
	name string
	definition
	tail []string // last lines that the build printed
}

func (b *baking) say(format string, args ...any) { b.Say(b.name, fmt.Sprintf(format, args...)) }

func (b *baking) bake(ctx context.Context) (commit string, skipped bool, err error) {
	if b.definition, err = readDefinition(b.Definitions, b.name); err != nil {
		return "", false, err
	}
	bases, err := b.baseDigests(ctx)
	if err != nil {
		return "", false, err
	}
	mark := b.mark(bases)
	if b.IfChanged {
		published, ok, err := b.published(ctx)
		if err != nil {
			return "", false, err
		}
		if ok && strings.Contains(published.description, mark) {
			b.say("unchanged since %s", published.made.UTC().Format(time.DateOnly))
			return published.commit, true, nil
		}
	}
	built, err := b.build(ctx)
	if err != nil {
		return "", false, err
	}
	if err := b.check(ctx, built.CommitID); err != nil {
		return "", false, errors.Join(err, b.discard(ctx, built.CommitID))
	}
	if err := b.publish(ctx, built, mark); err != nil {
		return "", false, fmt.Errorf("publish: %w", err)
	}
	return built.CommitID, false, nil
}

// keptTail is how many lines of a build are shown when it fails.
const keptTail = 25

// build has the server build the definition and gives the commit.
func (b *baking) build(ctx context.Context) (api.CommitBuild, error) {
	composed, err := b.compose(b.Host, b.Now)
	if err != nil {
		return api.CommitBuild{}, err
	}
	folder, err := composed.archive()
	if err != nil {
		return api.CommitBuild{}, err
	}
	options := api.CommitBuildOptions{Dockerfile: composedName, NoCache: b.NoCache, Config: b.config}
	if b.Host != nil {
		options.Args = b.Host.Proxies
	}
	built, err := b.Client.BuildCommit(ctx, options, folder, b.event)
	if err == nil {
		b.say("built in %v: %d steps, %d of them known", (time.Duration(built.DurationMS) * time.Millisecond).Round(time.Second), built.Steps, built.CachedSteps)
		return built, nil
	}
	var failed *api.CommitBuildError
	if errors.As(err, &failed) && failed.Text != "" {
		err = fmt.Errorf("step %d, %s: %w", failed.Number, shortened(failed.Text), err)
	}
	if len(b.tail) > 0 && !b.Verbose {
		err = fmt.Errorf("%w; the last that it printed:\n  %s", err, strings.Join(b.tail, "\n  "))
	}
	return api.CommitBuild{}, fmt.Errorf("build: %w", err)
}

func (b *baking) event(e api.CommitBuildEvent) {
	switch e.Type {
	case api.CommitBuildStep:
		b.tail = nil
		b.say("step %d/%d: %s", e.Number, e.Total, shortened(e.Text))
	case api.CommitBuildCached:
		b.say("step %d/%d: known", e.Number, e.Total)
	case api.CommitBuildWarning:
		b.say("warning: %s", e.Text)
	case api.CommitBuildLog:
		for _, line := range strings.Split(strings.TrimRight(string(e.Data), "\n"), "\n") {
			if b.Verbose {
				b.say("  %s", line)
			}
			b.tail = append(b.tail, line)
		}
		b.tail = b.tail[max(0, len(b.tail)-keptTail):]
	}
}

// shortened is an instruction in one line of a screen.
func shortened(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > 90 {
		return string(runes[:89]) + "…"
	}
	return text
}

// checkLimit bounds how long the script that checks an image runs, in seconds.
const checkLimit = 900

// check starts a machine from a commit and runs the scripts that prove the image. Nothing of it gets into the commit.
func (b *baking) check(ctx context.Context, commit string) (err error) {
	vm, err := b.Client.FromCommit(ctx, api.FromCommitRequest{CommitID: &commit})
	if err != nil {
		return fmt.Errorf("start a machine from it: %w", err)
	}
	defer func() { err = errors.Join(err, b.Client.DeleteVM(context.WithoutCancel(ctx), vm.VMID)) }()
	for _, script := range b.checks {
		limit := int64(checkLimit)
		home := "/root"
		result, err := b.Client.Exec(ctx, vm.VMID, api.ExecRequest{Command: []string{"bash", "-c", script}, WorkingDir: &home, TimeoutSecs: &limit})
		if err != nil {
			return fmt.Errorf("check: %w", err)
		}
		for _, line := range strings.Split(strings.TrimSpace(result.Stdout), "\n") {
			if line != "" {
				b.say("check: %s", line)
			}
		}
		if result.ExitCode != 0 {
			return fmt.Errorf("check ended with %d: %s", result.ExitCode, strings.TrimSpace(result.Stderr))
		}
	}
	return nil
}
