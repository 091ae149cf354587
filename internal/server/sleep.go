package server

import (
	"context"
	"math"
	"net/http"
	"time"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/machine"
)

func (s *Server) routeSleep() {
	add(s, operation{method: http.MethodPost, path: "/vm/{id}/sleep", id: "sleep-vm",
		summary: "[ours] Put a running VM to sleep: state on disk, memory free; what needs its guest wakes it", tag: "VMs"}, s.sleepVM)
	add(s, operation{method: http.MethodPatch, path: "/vm/{id}/terms", id: "set-vm-terms",
		summary: "[ours] Change when a VM falls asleep and when it is deleted", tag: "VMs"}, s.setTerms)
}

func (s *Server) sleepVM(ctx context.Context, in *BootInput) (*none, error) {
	id, err := vmID(in.ID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Machines.Sleep(ctx, callerOf(ctx), id, in.SkipWaitBoot)
}

type termsInput struct {
	VMInput
	Body api.Terms
}

func (s *Server) setTerms(ctx context.Context, in *termsInput) (*none, error) {
	id, err := vmID(in.ID)
	if err != nil {
		return nil, err
	}
	terms, err := readTerms(in.Body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Machines.SetTerms(ctx, callerOf(ctx), id, terms)
}

// readTerms refuses times that make no sense.
func readTerms(t api.Terms) (machine.Terms, error) {
	var terms machine.Terms
	for _, field := range []struct {
		name    string
		seconds *int64
		to      **time.Duration
	}{
		{"sleep_after_seconds", t.SleepAfterSeconds, &terms.SleepAfter},
		{"ttl_seconds", t.TTLSeconds, &terms.TTL},
	} {
		if field.seconds == nil {
			continue
		}
		if *field.seconds < 0 || *field.seconds > int64(math.MaxInt64/time.Second) {
			return terms, fault.Invalidf("%s is %d; it must be 0 for never, or a number of seconds", field.name, *field.seconds)
		}
		d := time.Duration(*field.seconds) * time.Second
		*field.to = &d
	}
	return terms, terms.Check()
}

// optionsOf makes the terms of a new VM an option for the machines; none if there are none.
func optionsOf(t api.Terms) ([]machine.Option, error) {
	terms, err := readTerms(t)
	if err != nil || terms == (machine.Terms{}) {
		return nil, err
	}
	return []machine.Option{machine.WithTerms(terms)}, nil
}

// utc shows a time that may be missing.
func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	at := t.UTC()
	return &at
}
