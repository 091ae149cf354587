package steps_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"vers/internal/build/steps"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/machinetest"
	"vers/internal/registry"
)

// Stages: one on another, files from one to another, only those that are needed; the files count, not how they came about.
func TestStages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, machinetest.Options{})
	const text = `ARG BASE=scratch
FROM ${BASE} AS tools
RUN echo tool > tool
FROM tools AS compile
ARG VERSION=1
RUN mkdir -p out/lib; cat tool > out/binary; echo lib > out/lib/a; echo log $VERSION > log
FROM scratch AS unneeded
RUN echo unneeded
FROM ${BASE}
COPY --from=compile /out/ /opt/
COPY --from=0 tool /opt/lib/t
RUN cat opt/binary opt/lib/a opt/lib/t > all
`
	compile := "mkdir -p out/lib; cat tool > out/binary; echo lib > out/lib/a; echo log $VERSION > log"
	first := w.build(w.request(text), "echo tool > tool", compile, "cat opt/binary opt/lib/a opt/lib/t > all")
	if got := w.shell(first.CommitID, "cat all; ls"); !strings.HasPrefix(got, "tool\nlib\ntool\n") || strings.Contains(got, "out") {
		t.Errorf("%q", got)
	}
	if again := w.build(w.request(text)); again.CommitID != first.CommitID || again.CachedSteps != 5 {
		t.Errorf("%+v", again)
	}
	req := w.request(text)
	req.Args = map[string]string{"VERSION": "2", "UNKNOWN": "x"}
	if other := w.build(req, compile); other.CommitID != first.CommitID || other.CachedSteps != 4 {
		t.Errorf("%+v", other)
	}
	if warned := w.events[0]; warned.Type != steps.EventWarning || !strings.Contains(warned.Text, "UNKNOWN") {
		t.Errorf("%+v", warned)
	}
	req = w.request(text)
	req.Target = "compile"
	if target := w.build(req); target.Steps != 2 || w.shell(target.CommitID, "cat log") != "log 1\n" {
		t.Errorf("%+v", target)
	}
	req.Target = "none"
	if _, _, err := w.try(req); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	// What FROM may name, COPY --from may too.
	w.must(w.Registry.PutBuildTag(t.Context(), w.by, "made:latest", first.CommitID))
	outside := w.build(w.request("FROM scratch\nCOPY --from=made:latest /all /copied\n"))
	if got := w.shell(outside.CommitID, "cat copied"); got != "tool\nlib\ntool\n" {
		t.Errorf("%q", got)
	}
}

// A commit as base, by all its names, gives on what its build said; tags are made and moved.
func TestBasesAndTags(t *testing.T) {
	t.Parallel()
	w := newWorld(t, machinetest.Options{})
	req := w.request("FROM scratch\nENV A=1 P=/x:$PATH\nUSER 0:0\nWORKDIR /srv\nWORKDIR sub\nLABEL l=$A\nEXPOSE 80 80/tcp 53/udp\nCMD [\"serve\"]\nENTRYPOINT run $A\nRUN echo base > base\nCMD echo $A\n")
	req.Tag = "base:v1"
	first := w.build(req, "echo base > base")
	image := first.Image
	if image.WorkingDir != "/srv/sub" || image.User != "0:0" || image.Labels["l"] != "1" || !slices.Equal(image.ExposedPorts, []string{"80/tcp", "53/udp"}) ||
		!slices.Equal(image.Entrypoint, []string{"/bin/sh", "-c", "run $A"}) || !slices.Equal(image.Cmd, []string{"/bin/sh", "-c", "echo $A"}) ||
		!slices.Equal(image.Env, []string{"A=1", "P=/x:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}) {
		t.Errorf("%+v", image)
	}
	req.Tag = "plain"
	w.build(req)
	for _, name := range []string{"base:v1", "plain", first.CommitID} {
		on := w.build(w.request("FROM "+name+"\nENTRYPOINT [\"other\"]\nRUN cat base > "+strings.ReplaceAll(name, ":", "-")), "cat base > "+strings.ReplaceAll(name, ":", "-"))
		if on.Image.WorkingDir != "/srv/sub" || !slices.Equal(on.Image.Entrypoint, []string{"other"}) || on.Image.Cmd != nil || on.Image.Env[0] != "A=1" {
			t.Errorf("%s: %+v", name, on.Image)
		}
		history, err := w.Catalog.CommitHistory(t.Context(), on.CommitID)
		w.must(err)
		if len(history) != 2 || history[1].ID != first.CommitID {
			t.Errorf("%s: the line of commits is %+v", name, history)
		}
	}
	req = w.request("FROM plain\n")
	req.Tag = "base:v1"
	alone := w.build(req)
	moved, err := w.Registry.Resolve(t.Context(), w.Acme.OrgID, registry.Reference{Repository: "base", Tag: "v1"})
	w.must(err)
	if moved != alone.CommitID || alone.CommitID == first.CommitID || alone.Steps != 0 {
		t.Errorf("%+v, the tag is at %s", alone, moved)
	}
	for _, bad := range []string{"a b", "a:b:c", "org/repo:tag", strings.Repeat("x", 100)} {
		req.Tag = bad
		if _, ran, err := w.try(req); !fault.Is(err, fault.Invalid) || len(ran) != 0 {
			t.Errorf("tag %q: %v", bad, err)
		}
	}
	req.Tag, req.Dockerfile = "", "none"
	if _, _, err := w.try(req); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "Dockerfile 'none' not found") {
		t.Error(err)
	}
}

func TestCopy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, machinetest.Options{})
	result := w.build(w.request(`FROM scratch
WORKDIR /w
COPY a .
COPY a renamed
COPY --chmod=755 a b dir/
COPY "with space" [x] /w/
COPY a /w/dir
COPY <<one <<"two" /w/docs/
$HOME ${A:-x}
one
$HOME
two
COPY . all
ADD a added
`, "a", "A", "b", "B", "with space", "S", "[x]", "X", "deep/er/f", "F", "secret", "no", ".dockerignore", "secret\nDockerfile\n"))
	want := "A A A B S X A\n x\n$HOME\nF\nall: .dockerignore [x] a b deep with space \n755\nA\n"
	got := w.shell(result.CommitID, `cd w; cat a; printf ' '; cat renamed; printf ' '; cat dir/a; printf ' '; cat dir/b; printf ' '; cat "with space"; printf ' '; cat '[x]'; printf ' '; cat dir/a; echo
cat docs/one docs/two all/deep/er/f; echo; printf 'all: '; ls -A all | tr '\n' ' '; echo; stat -c %a dir/b; cat added; echo`)
	if got != want {
		t.Errorf("%q\nwant\n%q", got, want)
	}
}

// Steps that nobody uses go, and those that take too much; a build then starts from what is left.
func TestTrim(t *testing.T) {
	t.Parallel()
	w := newWorld(t, machinetest.Options{})
	const text = "FROM scratch\nRUN echo 1 > one\nRUN echo 2 > two"
	first := w.build(w.request(text), "echo 1 > one", "echo 2 > two")
	cached := func() int {
		t.Helper()
		list, err := w.Catalog.CachedSteps(t.Context())
		w.must(err)
		return len(list)
	}
	w.must(w.runner.Trim(t.Context()))
	if n := cached(); n != 2 {
		t.Fatalf("%d steps are kept", n)
	}
	w.mu.Lock()
	w.now = w.now.Add(31 * 24 * time.Hour)
	w.mu.Unlock()
	w.must(w.runner.Trim(t.Context()))
	if n := cached(); n != 0 {
		t.Errorf("%d steps are kept for ever", n)
	}
	w.Settle(t)
	if got := w.shell(first.CommitID, "cat one two"); got != "1\n2\n" {
		t.Errorf("%q", got)
	}
	w.build(w.request(text), "echo 1 > one", "echo 2 > two")
	req := w.request(text)
	req.NoCache = true
	w.build(req, "echo 1 > one", "echo 2 > two")
	w.must(w.runner.Trim(t.Context()))
	if n := cached(); n != 3 { // the first one was replaced; what stood on it goes when it is old
		t.Errorf("%d steps are kept", n)
	}
	w.runner.Close()
	w.start(steps.Options{CacheBytes: 1})
	w.must(w.runner.Trim(t.Context()))
	if n := cached(); n != 0 {
		t.Errorf("%d steps are kept beyond the limit", n)
	}
	w.Empty(t)
}

// Builds live within their organisation's quotas.
func TestQuota(t *testing.T) {
	t.Parallel()
	var quotas catalog.Quotas
	w := newWorld(t, machinetest.Options{Quotas: func(context.Context, string) (catalog.Quotas, error) { return quotas, nil }})
	none := int64(0)
	quotas.VMs = &none
	if _, _, err := w.try(w.request("FROM scratch\nRUN true")); !fault.Is(err, fault.Exhausted) {
		t.Error(err)
	}
	quotas.VMs, quotas.StorageMiB = nil, &none
	if _, ran, err := w.try(w.request("FROM scratch\nRUN true")); !fault.Is(err, fault.Exhausted) || !slices.Equal(ran, []string{"true"}) {
		t.Errorf("%q %v", ran, err)
	}
	w.noVMs()
	quotas.StorageMiB = nil
	w.build(w.request("FROM scratch\nRUN true"))
	usage, err := w.Manager.Usage(t.Context(), w.Acme)
	w.must(err)
	if usage.VMs != 0 || usage.StoredBytes == 0 {
		t.Errorf("%+v", usage)
	}
}

// A versd that was killed had no time to end its builds: the next one does, and leaves all other VMs alone.
func TestKilledServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, machinetest.Options{})
	other := w.Run(t)
	made, _, err := w.Manager.Commit(t.Context(), w.Acme, other.ID, machine.CommitRequest{Step: true})
	w.must(err)
	for range 2 {
		_, err := w.Manager.Run(t.Context(), w.Acme, machine.RunRequest{Config: machinetest.Small, BuildID: "b", WaitBoot: true})
		w.must(err)
	}
	_, err = w.Manager.Run(t.Context(), w.Acme, machine.RunRequest{Config: machinetest.Small, BuildID: "b", Cold: true})
	w.must(err)
	dead, err := w.Manager.StartBuilder(t.Context(), w.Acme, machine.BuilderRequest{BuildID: "b", CommitID: made.ID})
	w.must(err)
	kept, err := w.Manager.StartBuilder(t.Context(), w.Acme, machine.BuilderRequest{BuildID: "b", CommitID: made.ID})
	w.must(err)
	w.must(w.Manager.KeepBuilder(t.Context(), w.Acme, kept.ID))
	if _, err := w.Manager.Restore(t.Context(), w.Acme, made.ID, machine.NetworkRequest{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a step's commit can be started by anybody: %v", err)
	}
	if _, err := w.Manager.StartBuilder(t.Context(), w.Other, machine.BuilderRequest{BuildID: "b", CommitID: made.ID}); !fault.Is(err, fault.NotFound) {
		t.Errorf("another organisation starts a step: %v", err)
	}
	if _, err := w.Manager.HoldCommit(t.Context(), w.Other, made.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("another organisation holds a step: %v", err)
	}
	w.Machine(t, dead.ID).Crash()
	w.AwaitState(t, w.Acme, dead.ID, machine.StateDead)
	w.runner.Close()
	w.Restart(t)
	w.start(steps.Options{})
	list, err := w.Manager.List(t.Context(), w.Acme)
	w.must(err)
	if len(list) != 2 || list[0].ID != kept.ID || list[1].ID != other.ID {
		t.Errorf("%+v", list)
	}
	if n := w.Driver.Running(); n != 2 {
		t.Errorf("%d machines run", n)
	}
}
