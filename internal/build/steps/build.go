package steps

import (
	"context"
	"errors"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
)

// build is one run of a Dockerfile.
type build struct {
	r       *Runner
	id      string
	by      catalog.Key
	caller  machine.Caller
	req     Request
	plan    plan
	emit    func(Event)
	stages  map[int]*stage
	outside map[string]*stage // what COPY --from names and is no stage
	trees   []interface{ Close() error }
	now     Event // the instruction under way: Number, Total, Stage, Line, Text
	result  Result
}

var errStopped = fault.Unavailablef("the server stops: the build was ended, start it again")

// Build runs a build to its end on behalf of a key. It tells emit what happens, in order and from one goroutine. When ctx
// ends, so does the build. Whatever it started is gone when it returns, except for a VM that was to be kept. A step that
// fails is a [*StepError].
func (r *Runner) Build(ctx context.Context, by catalog.Key, req Request, emit func(Event)) (_ Result, err error) {
	r.mu.Lock()
	if r.life.Err() != nil {
		r.mu.Unlock()
		return Result{}, errStopped
	}
	r.work.Add(1)
	r.mu.Unlock()
	defer r.work.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(r.life, func() { cancel(errStopped) })()

	began := time.Now()
	b := &build{
		r: r, id: ident.New(), by: by, caller: machine.Caller{OrgID: by.OrgID, KeyID: by.ID}, req: req, emit: emit,
		stages: map[int]*stage{}, outside: map[string]*stage{},
	}
	defer func() {
		err = errors.Join(err, b.end(ctx))
		r.trimSoon()
	}()
	if err = b.run(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return Result{}, b.failed(ctx, err)
	}
	b.result.Took = time.Since(began)
	return b.result, nil
}

func (b *build) run(ctx context.Context) error {
	if err := checkTag(b.req.Tag); err != nil {
		return err
	}
	if b.req.Tag != "" {
		if err := b.r.Registry.CheckBuildTag(ctx, b.by, b.req.Tag); err != nil {
			return err
		}
	}
	if b.req.ReadyTimeout < 0 || b.req.ReadyTimeout > maxReady {
		return fault.Invalidf("the time limit of the ready command is %v; up to %v is possible", b.req.ReadyTimeout, maxReady)
	}
	var warnings []string
	var err error
	if b.plan, warnings, err = readPlan(b.req); err != nil {
		return err
	}
	for _, w := range warnings {
		b.emit(Event{Type: EventWarning, Text: w})
	}
	b.now.Total = b.plan.total
	var last *stage
	for _, i := range b.plan.stages {
		if last, err = b.stage(ctx, i); err != nil {
			return err
		}
		if last.index != b.plan.stages[len(b.plan.stages)-1] && !b.plan.sources[i] {
			if err := last.release(ctx); err != nil { // only its commit is needed from here on
				return err
			}
		}
	}
	return b.finish(ctx, last)
}

// step shows the next instruction.
func (b *build) step(s *stage, line int, text string) {
	b.now.Number++
	b.now.Stage, b.now.Line, b.now.Text = s.name, line, text
	e := b.now
	e.Type = EventStep
	b.emit(e)
}

func (b *build) tell(kind string, change func(*Event)) {
	e := b.now
	e.Type, e.Text = kind, ""
	change(&e)
	b.emit(e)
}

func (b *build) notice(text string) { b.tell(EventNotice, func(e *Event) { e.Text = text }) }

// failed names the step that a build did not get over. VMs are kept before end sees them.
func (b *build) failed(ctx context.Context, err error) error {
	kept := b.keep(ctx)
	if b.now.Number == 0 {
		return err
	}
	var step *StepError
	if !errors.As(err, &step) {
		step = &StepError{Err: err}
	}
	step.Number, step.Total, step.Line, step.Text, step.VMID = b.now.Number, b.now.Total, b.now.Line, b.now.Text, kept
	return step
}

// keep leaves the VM of the newest stage that has one to its owner.
func (b *build) keep(ctx context.Context) string {
	if !b.req.Keep {
		return ""
	}
	var last *stage
	for _, i := range b.plan.stages {
		if s := b.stages[i]; s != nil && s.vm != "" {
			last = s
		}
	}
	if last == nil {
		return ""
	}
	if err := b.r.Machines.KeepBuilder(context.WithoutCancel(ctx), b.caller, last.vm); err != nil {
		b.r.Logger.Error("VM of a build not kept", "vm", last.vm, "error", err)
		return ""
	}
	kept := last.vm
	last.vm, last.guest = "", nil
	return kept
}

// end removes what the build has started.
func (b *build) end(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	all := make([]*stage, 0, len(b.stages)+len(b.outside))
	for _, s := range b.stages {
		all = append(all, s)
	}
	for _, s := range b.outside {
		all = append(all, s)
	}
	for _, s := range all {
		errs = append(errs, s.release(ctx))
		s.letGo()
	}
	for _, t := range b.trees {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}
