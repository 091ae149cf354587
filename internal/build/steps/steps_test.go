package steps_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vers/internal/build/steps"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/machine"
	"vers/internal/machine/machinetest"
	"vers/internal/registry"
)

// world is a versd without QEMU that builds. Commands of its guests are processes of this host, kept to the guest's root by
// their working directory only: Dockerfiles in here write to relative paths.
type world struct {
	*machinetest.Rig
	t        *testing.T
	Registry *registry.Registry
	runner   *steps.Runner
	by       catalog.Key
	dir      string

	mu     sync.Mutex
	ran    []string // scripts of RUN, in order
	events []steps.Event
	now    time.Time
}

func newWorld(t *testing.T, o machinetest.Options) *world {
	w := &world{Rig: machinetest.New(t, o), t: t, dir: t.TempDir(), now: time.Now()}
	w.Registry = registry.New(w.Catalog, registry.Options{})
	keys, err := w.Catalog.Keys(t.Context(), w.Acme.OrgID)
	w.must(err)
	w.by = keys[0]
	w.start(steps.Options{})
	t.Cleanup(func() { w.runner.Close() })
	return w
}

func (w *world) start(o steps.Options) {
	o.Catalog, o.Registry, o.Machines, o.Dir, o.Logger = w.Catalog, w.Registry, w.Manager, w.dir, slog.New(slog.DiscardHandler)
	o.Now = func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.now
	}
	o.Guest = func(ctx context.Context, c machine.Caller, vmID string) (steps.Guest, error) {
		client, err := w.Manager.Guest(ctx, c, vmID)
		return inside{client, w, w.Machine(w.t, vmID).Root()}, err
	}
	w.runner = steps.New(o)
	w.must(w.runner.Begin())
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// inside runs commands in the folder that stands for the guest's root.
type inside struct {
	*guest.Client
	w    *world
	root string
}

func (g inside) Exec(ctx context.Context, req guest.ExecRequest) (steps.Stream, error) {
	req.WorkingDir = filepath.Join(g.root, req.WorkingDir)
	if last := req.Command[len(req.Command)-1]; last != ":" {
		g.w.mu.Lock()
		g.w.ran = append(g.w.ran, last)
		g.w.mu.Unlock()
	}
	return g.Client.Exec(ctx, req)
}

// files makes an archive of name, content, name, content…
func files(t *testing.T, pairs ...string) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i < len(pairs); i += 2 {
		h := &tar.Header{Name: pairs[i], Mode: 0o644, Size: int64(len(pairs[i+1])), ModTime: time.Now()}
		if err := errors.Join(w.WriteHeader(h), second(io.WriteString(w, pairs[i+1]))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

func second(_ int, err error) error { return err }

func (w *world) request(dockerfile string, pairs ...string) steps.Request {
	w.t.Helper()
	tree, err := w.runner.Read(w.t.Context(), files(w.t, append([]string{"Dockerfile", dockerfile}, pairs...)...))
	w.must(err)
	w.t.Cleanup(func() { tree.Close() })
	return steps.Request{Context: tree, Dockerfile: "Dockerfile", Config: machinetest.Small}
}

// try builds, and gives the scripts that ran.
func (w *world) try(req steps.Request) (steps.Result, []string, error) {
	w.t.Helper()
	w.mu.Lock()
	w.ran, w.events = nil, nil
	w.mu.Unlock()
	result, err := w.runner.Build(w.t.Context(), w.by, req, func(e steps.Event) { w.events = append(w.events, e) })
	w.mu.Lock()
	defer w.mu.Unlock()
	return result, w.ran, err
}

// build is try for what succeeds and leaves no VM.
func (w *world) build(req steps.Request, ran ...string) steps.Result {
	w.t.Helper()
	result, got, err := w.try(req)
	w.must(err)
	if !slices.Equal(got, ran) {
		w.t.Errorf("ran %q, want %q", got, ran)
	}
	w.noVMs()
	return result
}

func (w *world) noVMs() {
	w.t.Helper()
	if vms, err := w.Manager.List(w.t.Context(), w.Acme); err != nil || len(vms) != 0 {
		w.t.Errorf("%d VMs are left (%v)", len(vms), err)
	}
}

// shell runs a script in a machine made of a commit, at its root, and gives what it writes.
func (w *world) shell(commitID, script string) string {
	w.t.Helper()
	vm, err := w.Manager.Restore(w.t.Context(), w.Acme, commitID, machine.NetworkRequest{})
	w.must(err)
	defer func() { w.must(w.Manager.Delete(w.t.Context(), w.Acme, vm.ID, false)) }()
	return w.Exec(w.t, w.Acme, vm.ID, "cd "+w.Machine(w.t, vm.ID).Root()+"\n"+script)
}

const app = `FROM scratch
RUN echo one > one
COPY src /app/
WORKDIR /app
ENV NAME=value
RUN cat ../one main > out; echo $NAME >> out
`

const (
	firstRun  = "echo one > one"
	secondRun = "cat ../one main > out; echo $NAME >> out"
)

// A second build runs nothing and is the same commit; one changed line runs what follows it; times of files do not count.
func TestCache(t *testing.T) {
	t.Parallel()
	w := newWorld(t, machinetest.Options{})
	context := []string{"src/main", "two\n", "src/sub/leaf", "three\n"}
	first := w.build(w.request(app, context...), firstRun, secondRun)
	if first.Steps != 3 || first.CachedSteps != 0 || first.Cached || first.Image.WorkingDir != "/app" || !slices.Equal(first.Image.Env, []string{"NAME=value"}) {
		t.Errorf("%+v", first)
	}
	if got := w.shell(first.CommitID, "cat app/out app/sub/leaf"); got != "one\ntwo\nvalue\nthree\n" {
		t.Errorf("%q", got)
	}
	commits, _, err := w.Catalog.Commits(t.Context(), w.Acme.OrgID, 10, 0)
	w.must(err)
	if len(commits) != 1 || commits[0].ID != first.CommitID {
		t.Errorf("commits that users see: %+v", commits)
	}
	again := w.build(w.request(app, context...))
	if again.CommitID != first.CommitID || again.Steps != 3 || again.CachedSteps != 3 || !again.Cached {
		t.Errorf("%+v", again)
	}
	changed := w.build(w.request(strings.Replace(app, "NAME=value", "NAME=other", 1), context...), secondRun)
	if changed.CommitID == first.CommitID || changed.CachedSteps != 2 || w.shell(changed.CommitID, "cat app/out") != "one\ntwo\nother\n" {
		t.Errorf("%+v", changed)
	}
	touched := w.build(w.request(app, "src/main", "new\n", "src/sub/leaf", "three\n"), secondRun)
	if touched.CachedSteps != 1 {
		t.Errorf("%+v", touched)
	}
	w.build(w.request(app, append(context, "other", "not copied")...))
	// A deleted outcome is made again, of its last step.
	w.must(w.Manager.DeleteCommit(t.Context(), w.Acme, changed.CommitID))
	back := w.build(w.request(strings.Replace(app, "NAME=value", "NAME=other", 1), context...))
	if back.CommitID == changed.CommitID || back.CachedSteps != 3 || w.shell(back.CommitID, "cat app/out") != "one\ntwo\nother\n" {
		t.Errorf("%+v", back)
	}
	req := w.request(app, context...)
	req.NoCache = true
	if fresh := w.build(req, firstRun, secondRun); fresh.CachedSteps != 0 || fresh.CommitID == first.CommitID {
		t.Errorf("%+v", fresh)
	}
	// Another organisation's builds know nothing of it.
	keys, err := w.Catalog.Keys(t.Context(), w.Other.OrgID)
	w.must(err)
	result, err := w.runner.Build(t.Context(), keys[0], w.request(app, context...), func(steps.Event) {})
	w.must(err)
	if result.CachedSteps != 0 {
		t.Errorf("%+v", result)
	}
}

// A step that fails is named, and nothing is left of its build but the steps before it.
func TestFailingStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, machinetest.Options{})
	const broken = "FROM scratch\n\nRUN echo fine > fine\nLABEL a=b\nRUN echo words; \\\n  exit 3\nRUN echo never\n"
	fail := func(req steps.Request) *steps.StepError {
		t.Helper()
		_, _, err := w.try(req)
		var step *steps.StepError
		if !errors.As(err, &step) {
			t.Fatalf("%v", err)
		}
		return step
	}
	step := fail(w.request(broken))
	if step.Number != 4 || step.Total != 5 || step.Line != 5 || step.Code == nil || *step.Code != 3 || step.VMID != "" || !strings.HasPrefix(step.Text, "RUN echo words;") {
		t.Errorf("%+v", step)
	}
	w.noVMs()
	var said string
	for _, e := range w.events {
		if e.Type == steps.EventLog {
			said += string(e.Data)
		}
	}
	if said != "words\n" {
		t.Errorf("%q", said)
	}
	w.build(w.request("FROM scratch\nRUN echo fine > fine\nRUN echo better"), "echo better")

	req := w.request(broken)
	req.Keep = true
	kept := fail(req)
	if got := w.Exec(t, w.Acme, kept.VMID, "cat "+w.Machine(t, kept.VMID).Root()+"/fine"); got != "fine\n" {
		t.Errorf("%q", got)
	}
	w.runner.Close()
	w.Restart(t)
	w.Registry = registry.New(w.Catalog, registry.Options{})
	w.start(steps.Options{})
	if _, err := w.Manager.Get(t.Context(), w.Acme, kept.VMID); err != nil {
		t.Errorf("the kept VM: %v", err)
	}
	w.must(w.Manager.Delete(t.Context(), w.Acme, kept.VMID, false))
	for text, want := range map[string]string{
		"FROM nothing-here":                                   "no plain tag, commit or rootfs image of that name",
		"FROM no:thing":                                       "repository 'no' not found",
		"FROM scratch\nCOPY nothing /":                        `"nothing" is not in the context`,
		"FROM scratch\nCOPY ../x /":                           "leads out of the context",
		"FROM scratch\nCOPY --chmod=rwx a /":                  "--chmod=rwx is not possible",
		"FROM scratch\nADD bundle.tar /":                      "ADD does not unpack bundle.tar here",
		"FROM scratch\nCOPY --from=5 a b":                     "there is no stage 5 before this",
		"FROM scratch\nEXPOSE x":                              `"x" is no port`,
		"FROM scratch\nWORKDIR $NONE":                         "WORKDIR has an empty value",
		"FROM scratch\nENV A=\"${B:?must be given}\"":         "B is not set: must be given",
		"FROM scratch\nRUN [\"no-such-program\"]":             "the command ended with 127",
		"FROM scratch\nUSER nobody-here\nRUN true":            "the command ended with 126",
		"FROM scratch\nCOPY --chown=no-one Dockerfile /":      "no user",
		"FROM scratch AS a\nFROM a\nCOPY --from=a /nothing /": `"/nothing" is not in stage a`,
	} {
		if _, _, err := w.try(w.request(text, "bundle.tar", files(t, "a", "b").String())); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: want %q, got %v", text, want, err)
		}
		w.noVMs()
	}
}

// A client that goes away, a server that stops, a limit that is reached: nothing of the build is left.
func TestBuildIsEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, machinetest.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	hang := w.request("FROM scratch\nRUN echo begun; sleep 1000\n")
	_, err := w.runner.Build(ctx, w.by, hang, func(e steps.Event) {
		if e.Type == steps.EventLog {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	w.noVMs()
	done := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		_, err := w.runner.Build(t.Context(), w.by, hang, func(e steps.Event) {
			if e.Type == steps.EventLog {
				close(begun)
			}
		})
		done <- err
	}()
	<-begun
	w.runner.Close()
	if err := <-done; !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "server stops") {
		t.Error(err)
	}
	w.noVMs()
	if _, err := w.runner.Build(t.Context(), w.by, hang, func(steps.Event) {}); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	w.start(steps.Options{})
	req := w.request("FROM scratch\nRUN echo 1 > here")
	req.Ready, req.ReadyTimeout = "echo not yet; test -e never", 60*time.Millisecond
	if _, _, err := w.try(req); !fault.Is(err, fault.Timeout) || !strings.Contains(err.Error(), "not ready within 60ms") || !strings.Contains(err.Error(), "not yet") {
		t.Error(err)
	}
	w.noVMs()
	req.ReadyTimeout = 0
	req.Ready = `test -e tried || { : > tried; exit 1; }`
	result := w.build(req, req.Ready, req.Ready)
	if got := w.shell(result.CommitID, "ls"); !strings.Contains(got, "tried") {
		t.Errorf("%q", got)
	}
	w.build(req) // and is known then
}

// Builds of the same at the same time do it once.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, machinetest.Options{})
	const n = 4
	results, errs := make([]steps.Result, n), make([]error, n)
	var group sync.WaitGroup
	for i := range n {
		req := w.request("FROM scratch\nRUN echo 1 > one\nRUN echo 2 > two")
		group.Go(func() { results[i], errs[i] = w.runner.Build(t.Context(), w.by, req, func(steps.Event) {}) })
	}
	group.Wait()
	w.must(errors.Join(errs...))
	slices.Sort(w.ran)
	if !slices.Equal(w.ran, []string{"echo 1 > one", "echo 2 > two"}) {
		t.Errorf("ran %q", w.ran)
	}
	for _, r := range results {
		if r.CommitID != results[0].CommitID {
			t.Errorf("%+v and %+v", r, results[0])
		}
	}
	w.noVMs()
}
