package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"vers/internal/machine"
)

type scenario struct {
	name string
	run  func(ctx context.Context, l *lab, r *report) error
}

func scenarios(quick bool) []scenario {
	n, clones, depth, copied := 20, 50, 50, int64(1024)
	if quick {
		n, clones, depth, copied = 6, 10, 10, 64
	}
	list := []scenario{
		{"run", func(ctx context.Context, l *lab, r *report) error { return benchRun(ctx, l, r, n) }},
		{"memory 512 touched 100", func(ctx context.Context, l *lab, r *report) error { return benchMemory(ctx, l, r, 512, 100, n) }},
		{"memory 2048 touched 100", func(ctx context.Context, l *lab, r *report) error { return benchMemory(ctx, l, r, 2048, 100, n) }},
	}
	if !quick {
		list = append(list, scenario{"memory 2048 touched 1000", func(ctx context.Context, l *lab, r *report) error {
			return benchMemory(ctx, l, r, 2048, 1000, n/2)
		}})
	}
	return append(list,
		scenario{"sleep 512 touched 100", func(ctx context.Context, l *lab, r *report) error { return benchSleep(ctx, l, r, 512, 100, n) }},
		scenario{"sleep 2048 touched 100", func(ctx context.Context, l *lab, r *report) error { return benchSleep(ctx, l, r, 2048, 100, n) }},
		scenario{"many", func(ctx context.Context, l *lab, r *report) error { return benchMany(ctx, l, r, clones) }},
		scenario{"depth", func(ctx context.Context, l *lab, r *report) error { return benchDepth(ctx, l, r, depth, n) }},
		scenario{"diff", func(ctx context.Context, l *lab, r *report) error { return benchDiff(ctx, l, r, 200, n) }},
		scenario{"tree", func(ctx context.Context, l *lab, r *report) error { return benchTree(ctx, l, r, n/2) }},
		scenario{"copy", func(ctx context.Context, l *lab, r *report) error { return benchCopy(ctx, l, r, copied) }},
		scenario{"image build", func(ctx context.Context, l *lab, r *report) error { return benchBuildImage(ctx, l, r, n) }},
		scenario{"commit build", func(ctx context.Context, l *lab, r *report) error { return benchBuildCommit(ctx, l, r, n) }},
	)
}

// benchRun: cold boot against a run from the template.
func benchRun(ctx context.Context, l *lab, r *report, n int) error {
	var cold, warm, resumed samples
	for range 2 {
		began := time.Now()
		vm, err := l.run(ctx, 512, true)
		if err != nil {
			return err
		}
		cold.add(time.Since(began))
		if err := l.m.Delete(ctx, l.caller, vm.ID, false); err != nil {
			return err
		}
	}
	if _, err := l.run(ctx, 512, false); err != nil { // makes the template
		return err
	}
	for range n {
		tctx, m := watched(ctx)
		vm, err := l.run(tctx, 512, false)
		if err != nil {
			return err
		}
		warm.add(time.Since(m.began))
		resumed.add(m.first[machine.MomentResumed])
		if err := l.m.Delete(ctx, l.caller, vm.ID, false); err != nil {
			return err
		}
	}
	params := map[string]string{"ram_mib": "512"}
	r.compare("warm run: guest resumed", "ms", params, resumed, "cold boot", cold)
	r.compare("warm run: API return, identity confirmed", "ms", params, warm, "cold boot", cold)
	return nil
}

// benchMemory: commit, restore and live branch of a VM that has touched some memory, beside QEMU's own means.
func benchMemory(ctx context.Context, l *lab, r *report, ram int64, touched, n int) error {
	params := map[string]string{"ram_mib": strconv.FormatInt(ram, 10), "touched_mb": strconv.Itoa(touched)}
	own, err := baseline(ctx, l, ram, touched)
	if err != nil {
		return fmt.Errorf("baseline: %w", err)
	}
	vm, err := l.run(ctx, ram, false)
	if err != nil {
		return err
	}
	if err := l.exec(ctx, vm.ID, touch(touched)); err != nil {
		return err
	}
	var pause, durable samples
	var commit machine.Commit
	for range n {
		began := time.Now()
		c, timing, err := l.m.Commit(ctx, l.caller, vm.ID, machine.CommitRequest{})
		if err != nil {
			return err
		}
		durable.add(time.Since(began))
		pause.add(timing.Paused)
		commit = c
	}
	r.compare("commit: source pause", "ms", params, pause, "savevm", own.savevm)
	r.compare("commit: API return, durable", "ms", params, durable, "migrate to file", own.migrate)
	if err := benchRestore(ctx, l, r, params, commit.ID, own, n); err != nil {
		return err
	}
	return benchBranch(ctx, l, r, params, commit.ID, own, n)
}

func benchRestore(ctx context.Context, l *lab, r *report, params map[string]string, commit string, own ownMeans, n int) error {
	var resumed, answers, returned, first, private, pss samples
	for range n {
		tctx, m := watched(ctx)
		vm, err := l.m.Restore(tctx, l.caller, commit, machine.NetworkRequest{})
		if err != nil {
			return err
		}
		returned.add(time.Since(m.began))
		resumed.add(m.first[machine.MomentResumed])
		answers.add(m.first[machine.MomentAnswers])
		if err := l.exec(ctx, vm.ID, "true"); err != nil {
			return err
		}
		first.add(time.Since(m.began))
		if err := l.m.Delete(ctx, l.caller, vm.ID, false); err != nil {
			return err
		}
	}
	// What an idle clone has for itself: looked at without a command in it. Several, since what they share is divided by
	// their number.
	const clones = 5
	vms, err := l.m.BranchCommit(ctx, l.caller, commit, clones, machine.NetworkRequest{})
	if err != nil {
		return err
	}
	for _, vm := range vms {
		guestBytes, whole, err := l.private(vm)
		if err != nil {
			return err
		}
		private.addBytes(guestBytes)
		pss.addBytes(whole)
	}
	r.compare("restore: guest resumed", "ms", params, resumed, "loadvm", own.loadvm)
	r.compare("restore: answers TCP", "ms", params, answers, "restore from migration file", own.incoming)
	r.add("restore: API return, identity confirmed", "ms", params, returned)
	r.add("restore: first exec done", "ms", params, first)
	r.add("idle clone, one of 5: guest memory of its own", "MiB", params, private)
	r.add("idle clone, one of 5: whole process, proportional", "MiB", params, pss)
	return deleteAll(ctx, l, vms)
}

// benchBranch: live branch, N=1, of a clone that has dirtied 4 MB, the design's figure.
func benchBranch(ctx context.Context, l *lab, r *report, params map[string]string, commit string, own ownMeans, n int) error {
	source, err := l.m.Restore(ctx, l.caller, commit, machine.NetworkRequest{})
	if err != nil {
		return err
	}
	if err := l.exec(ctx, source.ID, "yes more | head -c 4M > /dev/shm/more"); err != nil {
		return err
	}
	var prepared, pause, mapped, answers, returned, durable, first samples
	for range n {
		tctx, m := watched(ctx)
		vms, _, timing, err := l.m.Branch(tctx, l.caller, source.ID, machine.BranchRequest{Count: 1})
		if err != nil {
			return err
		}
		returned.add(time.Since(m.began))
		prepared.add(m.first[machine.MomentPaused])
		pause.add(timing.Paused)
		mapped.add(m.first[machine.MomentMapped])
		answers.add(m.first[machine.MomentAnswers])
		durable.add(m.last[machine.MomentDurable])
		if err := l.exec(ctx, vms[0].ID, "true"); err != nil {
			return err
		}
		first.add(time.Since(m.began))
		if err := l.m.Delete(ctx, l.caller, vms[0].ID, false); err != nil {
			return err
		}
	}
	r.compare("live branch, 4 MB dirty: source pause", "ms", params, pause, "savevm", own.savevm)
	r.add("live branch, 4 MB dirty: prepared, pause begins", "ms", params, prepared)
	r.add("live branch, 4 MB dirty: flat file complete", "ms", params, mapped)
	r.add("live branch, 4 MB dirty: child answers TCP", "ms", params, answers)
	r.add("live branch, 4 MB dirty: commit durable", "ms", params, durable)
	r.add("live branch, 4 MB dirty: API return", "ms", params, returned)
	r.add("live branch, 4 MB dirty: child's first exec done", "ms", params, first)
	return nil
}

// benchMany: many live branches of one VM at once, all of which must answer a command.
func benchMany(ctx context.Context, l *lab, r *report, count int) error {
	source, err := l.run(ctx, 256, false)
	if err != nil {
		return err
	}
	tctx, m := watched(ctx)
	vms, _, _, err := l.m.Branch(tctx, l.caller, source.ID, machine.BranchRequest{Count: count})
	if err != nil {
		return err
	}
	var returned, all samples
	returned.add(time.Since(m.began))
	group, gctx := errgroup.WithContext(ctx)
	for _, vm := range vms {
		group.Go(func() error { return l.exec(gctx, vm.ID, "true") })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	all.add(time.Since(m.began))
	params := map[string]string{"ram_mib": "256", "count": strconv.Itoa(count)}
	r.add("branches at once: API return", "ms", params, returned)
	r.add("branches at once: all have answered exec", "ms", params, all)
	return nil
}

// benchDepth: a commit of a VM restored from a commit of a VM … restored at the first and at the last of them.
func benchDepth(ctx context.Context, l *lab, r *report, depth, n int) error {
	vm, err := l.run(ctx, 512, false)
	if err != nil {
		return err
	}
	var shallow, deep machine.Commit
	for i := range depth {
		if err := l.exec(ctx, vm.ID, "echo "+strconv.Itoa(i)+" >> /root/depth"); err != nil {
			return err
		}
		c, _, err := l.m.Commit(ctx, l.caller, vm.ID, machine.CommitRequest{})
		if err != nil {
			return err
		}
		if i == 0 {
			shallow = c
		}
		deep = c
		if err := l.m.Delete(ctx, l.caller, vm.ID, false); err != nil {
			return err
		}
		if vm, err = l.m.Restore(ctx, l.caller, c.ID, machine.NetworkRequest{}); err != nil {
			return err
		}
	}
	times := map[string]*samples{shallow.ID: {}, deep.ID: {}}
	for range n { // in turns, so that both see the same machine
		for _, id := range []string{shallow.ID, deep.ID} {
			tctx, m := watched(ctx)
			vm, err := l.m.Restore(tctx, l.caller, id, machine.NetworkRequest{})
			if err != nil {
				return err
			}
			times[id].add(m.first[machine.MomentResumed])
			if err := l.m.Delete(ctx, l.caller, vm.ID, false); err != nil {
				return err
			}
		}
	}
	r.compare("restore: guest resumed, deep commit", "ms", map[string]string{"depth": strconv.Itoa(depth)}, *times[deep.ID], "depth 1", *times[shallow.ID])
	return nil
}
