package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"vers/internal/build/steps"
	"vers/internal/catalog"
	"vers/internal/guest"
	"vers/internal/machine"
	"vers/internal/registry"
)

// buildScripts are the commands of the Dockerfile that is measured.
var buildScripts = []string{
	"mkdir -p /srv/app && seq 20000 | sha256sum > /srv/app/sum",
	"i=0; while [ $i -lt 200 ]; do echo $i > /srv/app/$i; i=$((i+1)); done",
	"tar c -C /srv app | sha256sum > /srv/app.sum; echo 0 > /srv/version",
}

// benchBuildCommit builds a Dockerfile of one COPY and three RUN into a commit: nothing known, everything known, and with
// the last line changed. The baseline is the same commands one after the other in a machine that runs already, without
// commits.
func benchBuildCommit(ctx context.Context, l *lab, r *report, n int) error {
	b := builder{l: l, runner: steps.New(steps.Options{
		Catalog: l.m.Catalog, Registry: registry.New(l.m.Catalog, registry.Options{}), Machines: l.m, Logger: slog.New(slog.DiscardHandler),
		Guest: func(ctx context.Context, c machine.Caller, vmID string) (steps.Guest, error) {
			client, err := l.m.Guest(ctx, c, vmID)
			return buildGuest{client}, err
		}})}
	defer b.runner.Close()
	var cold, warm, changed, alone samples
	if _, err := b.build(ctx, buildScripts, true); err != nil { // makes the template
		return err
	}
	for i := range n {
		for _, kind := range []struct {
			took    *samples
			noCache bool
			cached  int
			last    string
		}{{&cold, true, 0, ""}, {&warm, false, 4, ""}, {&changed, false, 3, fmt.Sprintf("; echo %d >> /srv/version", i+1)}} {
			scripts := append([]string{}, buildScripts...)
			scripts[2] += kind.last
			began := time.Now()
			result, err := b.build(ctx, scripts, kind.noCache)
			if err != nil {
				return err
			}
			kind.took.add(time.Since(began))
			if result.CachedSteps != kind.cached {
				return fmt.Errorf("%d of %d steps came from the cache, not %d", result.CachedSteps, result.Steps, kind.cached)
			}
		}
		took, err := b.alone(ctx)
		if err != nil {
			return err
		}
		alone.add(took)
	}
	const baseline = "the commands alone"
	r.compare("commit build, cold", "ms", nil, cold, baseline, alone)
	r.compare("commit build, one line changed", "ms", nil, changed, baseline, alone)
	r.compare("commit build, warm", "ms", nil, warm, baseline, alone)
	return nil
}

type builder struct {
	l      *lab
	runner *steps.Runner
}

type buildGuest struct{ *guest.Client }

// Exec implements steps.Guest.
func (g buildGuest) Exec(ctx context.Context, req guest.ExecRequest) (steps.Stream, error) {
	return g.Client.Exec(ctx, req)
}

func (b builder) build(ctx context.Context, scripts []string, noCache bool) (steps.Result, error) {
	dockerfile := "FROM scratch\nCOPY data /srv/data\nRUN " + strings.Join(scripts, "\nRUN ") + "\n"
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, text := range map[string]string{"Dockerfile": dockerfile, "data": strings.Repeat("data", 1<<18)} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			return steps.Result{}, err
		}
		if _, err := w.Write([]byte(text)); err != nil {
			return steps.Result{}, err
		}
	}
	if err := w.Close(); err != nil {
		return steps.Result{}, err
	}
	tree, err := b.runner.Read(ctx, &archive)
	if err != nil {
		return steps.Result{}, err
	}
	defer tree.Close()
	return b.runner.Build(ctx, catalog.Key{ID: b.l.caller.KeyID, OrgID: b.l.caller.OrgID},
		steps.Request{Context: tree, Dockerfile: "Dockerfile", NoCache: noCache}, func(steps.Event) {})
}

// alone runs the commands in a machine, and says how long they took.
func (b builder) alone(ctx context.Context) (took time.Duration, err error) {
	vm, err := b.l.run(ctx, 512, false)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, deleteAll(ctx, b.l, []machine.VM{vm})) }()
	client, err := b.l.m.Guest(ctx, b.l.caller, vm.ID)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for _, script := range buildScripts {
		if err := execIn(ctx, client, script); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}
