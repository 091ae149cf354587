package server

import (
	"errors"
	"strings"
	"testing"
	"time"

	"vers/api"
	"vers/internal/ident"
)

const newRoot = "/vm/new_root"

func TestRepeatedRequests(t *testing.T) {
	h := newHarness(t)
	key := []string{api.HeaderIdempotencyKey, ident.New()}
	body := `{"vm_config":{}}`
	first := h.call("POST", newRoot, body, key...).want(201)
	again := h.call("POST", newRoot, body, key...).want(201)
	if first.body != again.body || h.machines.runs != 1 {
		t.Errorf("%d VMs were made: %s %s", h.machines.runs, first.body, again.body)
	}
	// Another caller, path, method or key is another request.
	h.callAs(h.otherKey, "POST", newRoot, body, key...).want(201)
	h.call("POST", "/repositories", `{"name":"r"}`, key...).want(201)
	h.call("POST", newRoot, body, api.HeaderIdempotencyKey, ident.New()).want(201)
	if h.machines.runs != 3 {
		t.Errorf("%d VMs, want 3", h.machines.runs)
	}
	h.call("POST", newRoot, `{"vm_config":{"vcpu_count":2}}`, key...).want(400).says("other content")
	h.call("POST", newRoot+"?wait_boot=true", body, key...).want(400)
	h.call("POST", newRoot, body, api.HeaderIdempotencyKey, strings.Repeat("k", 256)).want(400)

	// A refusal is an answer too, and has no body sometimes.
	h.call("POST", "/repositories", `{"name":"r"}`, api.HeaderIdempotencyKey, "conflict").want(409)
	h.call("DELETE", "/repositories/r", "", key...).want(204)
	h.call("DELETE", "/repositories/r", "", key...).want(204).empty()
	h.call("POST", "/repositories", `{"name":"r"}`, api.HeaderIdempotencyKey, "conflict").want(409).says("already exists")

	// A server fault is none: what it had begun was undone.
	h.failNext(errors.New("out of luck"))
	h.call("POST", newRoot, body, api.HeaderIdempotencyKey, "fault").want(500)
	h.call("POST", newRoot, body, api.HeaderIdempotencyKey, "fault").want(201)
}

func TestAnswersExpire(t *testing.T) {
	h := newHarness(t)
	now := time.Now()
	h.server.now = func() time.Time { return now }
	key := []string{api.HeaderIdempotencyKey, "k"}
	h.call("POST", newRoot, `{"vm_config":{}}`, key...).want(201)
	now = now.Add(answersKept - time.Minute)
	h.call("POST", newRoot, `{"vm_config":{}}`, key...).want(201)
	if h.machines.runs != 1 {
		t.Errorf("%d VMs, want 1", h.machines.runs)
	}
	now = now.Add(2 * time.Minute)
	h.call("POST", newRoot, `{"vm_config":{}}`, key...).want(201)
	if h.machines.runs != 2 {
		t.Errorf("%d VMs, want 2", h.machines.runs)
	}
}

// Whoever repeats a request that is still running waits for its answer.
func TestConcurrentRepetitions(t *testing.T) {
	h := newHarness(t)
	h.machines.gate, h.machines.began, h.machines.ended = make(chan struct{}), make(chan struct{}), make(chan error, 1)
	const callers = 4
	answers := make(chan answer, callers)
	for range callers {
		go func() {
			req := h.request(h.key, "POST", newRoot, `{"vm_config":{}}`, api.HeaderIdempotencyKey, "k")
			answers <- h.send(h.unix, req)
		}()
	}
	<-h.machines.began // a second one would wait here for ever
	close(h.machines.gate)
	bodies := map[string]bool{}
	for range callers {
		bodies[(<-answers).want(201).body] = true
	}
	if len(bodies) != 1 || h.machines.runs != 1 {
		t.Errorf("%d VMs, answers %v", h.machines.runs, bodies)
	}
}

// Streams are not held back for a repetition.
func TestStreamsAreNotRepeated(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	g := h.guest(vm)
	g.script = script
	for range 2 {
		a := h.call("POST", "/vm/"+vm+"/exec/stream", `{"command":["id"]}`, api.HeaderIdempotencyKey, "k")
		if a.status != 200 {
			t.Fatal(a.body)
		}
	}
	if len(g.execs) != 2 {
		t.Errorf("%d commands, want 2", len(g.execs))
	}
}
