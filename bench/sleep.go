package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"vers/internal/machine"
)

// benchSleep: a VM falls asleep and wakes by a command, again and again; how long each takes must not follow its RAM.
func benchSleep(ctx context.Context, l *lab, r *report, ram int64, touched, n int) error {
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
	var stopped, durable, asleep, started, resumed, answers, told, awake, first samples
	for range n {
		tctx, m := watched(ctx)
		if err := l.m.Sleep(tctx, l.caller, vm.ID, false); err != nil {
			return err
		}
		asleep.add(time.Since(m.began))
		stopped.add(m.first[machine.MomentCaptured])
		durable.add(m.last[machine.MomentDurable])

		tctx, m = watched(ctx)
		if _, err := l.m.Guest(tctx, l.caller, vm.ID); err != nil {
			return err
		}
		awake.add(time.Since(m.began))
		started.add(m.first[machine.MomentStarted])
		resumed.add(m.first[machine.MomentResumed])
		answers.add(m.first[machine.MomentAnswers])
		told.add(m.first[machine.MomentConfirmed])
		if err := l.exec(ctx, vm.ID, "true"); err != nil {
			return err
		}
		first.add(time.Since(m.began))
	}
	r.add("sleep: state captured", "ms", params, stopped)
	r.compare("sleep: durable", "ms", params, durable, "migrate to file", own.migrate)
	r.add("sleep: API return, memory free", "ms", params, asleep)
	r.add("wake: process answers", "ms", params, started)
	r.compare("wake: guest resumed", "ms", params, resumed, "loadvm", own.loadvm)
	r.add("wake: guest answers TCP", "ms", params, answers)
	r.add("wake: guest knows the time", "ms", params, told)
	r.compare("wake: API return", "ms", params, awake, "restore from migration file", own.incoming)
	r.add("wake: first exec done", "ms", params, first)
	return nil
}
