package deploy_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vers/internal/catalog"
	"vers/internal/deploy"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/machine"
	"vers/internal/machine/machinetest"
)

// world is a runner on machines in memory, whose commands run in a folder of this machine, and a git server.
type world struct {
	*machinetest.Rig
	t      *testing.T
	runner *deploy.Runner
	repo   string // URL
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, Rig: machinetest.New(t, machinetest.Options{}), repo: newRepository(t)}
	w.start()
	t.Cleanup(func() { w.runner.Close() })
	return w
}

func (w *world) start() {
	w.runner = deploy.New(deploy.Options{Catalog: w.Catalog, Machines: w.Manager, Logger: slog.New(slog.DiscardHandler), Retry: 10 * time.Millisecond,
		Guest: func(ctx context.Context, c machine.Caller, id string) (deploy.Guest, error) {
			g, err := w.Manager.Guest(ctx, c, id)
			return client{g}, err
		}})
}

type client struct{ *guest.Client }

func (c client) Exec(ctx context.Context, req guest.ExecRequest) (deploy.Stream, error) {
	s, err := c.Client.Exec(ctx, req)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (c client) Attach(ctx context.Context, req guest.AttachRequest) (deploy.Stream, error) {
	s, err := c.Client.Attach(ctx, req)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// newRepository serves a repository the simplest way there is, which knows no shallow clones.
func newRepository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := `set -e
git init -q -b main work && cd work
mkdir sub && echo hello > sub/greeting
git add . && git -c user.name=t -c user.email=t@example.org commit -q -m one
git clone -q --bare . ../app.git && cd ../app.git && git update-server-info`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	web := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(web.Close)
	return web.URL + "/app.git"
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) deploy(req deploy.Request) catalog.Project {
	w.t.Helper()
	p, err := w.runner.Prepare(w.t.Context(), w.Acme, req)
	w.must(err)
	p.VMID = w.Run(w.t).ID
	w.must(w.runner.Begin(w.t.Context(), p))
	return p
}

// await waits until a project is in one of some states.
func (w *world) await(id string, states ...string) catalog.Project {
	w.t.Helper()
	var p catalog.Project
	machinetest.Await(w.t, "project is "+strings.Join(states, " or "), func() bool {
		var err error
		p, err = w.runner.Project(w.t.Context(), w.Acme.OrgID, id)
		w.must(err)
		return slices.Contains(states, p.Status)
	})
	return p
}

func TestDeploy(t *testing.T) {
	w := newWorld(t)
	branch := "main"
	p := w.deploy(deploy.Request{Repo: w.repo, Branch: &branch, Settings: deploy.Settings{
		Install: "cp greeting installed", Build: "cat installed > built && test ! -e ../installed", Run: "cat built; echo done >&2", Folder: "sub"}})
	if p.Name != "app" || p.Status != deploy.Starting {
		t.Errorf("%+v", p)
	}
	p = w.await(p.ID, deploy.Finished, deploy.Failed)
	if p.Status != deploy.Finished || *p.ExitCode != 0 || p.Reason != "" {
		t.Fatalf("%+v, exit code %v", p, p.ExitCode)
	}
	// The output of the last step is kept like that of any command.
	g, err := w.Manager.Guest(t.Context(), w.Acme, p.VMID)
	w.must(err)
	stream, err := g.Attach(t.Context(), guest.AttachRequest{ExecID: p.ExecID})
	w.must(err)
	defer stream.Close()
	kept := map[string]string{}
	for event := (guest.Event{}); event.Type != guest.EventExit; { // the two streams come in any order
		event, err = stream.Recv()
		w.must(err)
		kept[event.Stream] += string(event.Data)
	}
	if kept[guest.Stdout] != "hello\n" || kept[guest.Stderr] != "done\n" {
		t.Errorf("%q", kept)
	}
}

func TestDeployFails(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		req  deploy.Request
		says string
	}{
		"unreachable": {deploy.Request{Repo: "http://127.0.0.1:1/a.git"}, "git clone ended"},
		"no-branch":   {deploy.Request{Repo: w.repo, Branch: ptr("nowhere")}, "nowhere"},
		"no-folder":   {deploy.Request{Repo: w.repo, Settings: deploy.Settings{Build: "true", Folder: "nowhere"}}, "the build command ended with"},
		"install":     {deploy.Request{Repo: w.repo, Settings: deploy.Settings{Install: "echo first >&2; echo no luck >&2; exit 3", Run: "true"}}, "the install command ended with 3: no luck"},
		"run":         {deploy.Request{Repo: w.repo, Settings: deploy.Settings{Run: "exit 4"}}, "the run command ended with 4"},
	} {
		c.req.Name = name
		p := w.await(w.deploy(c.req).ID, deploy.Finished, deploy.Failed)
		if p.Status != deploy.Failed || !strings.Contains(p.Reason, c.says) {
			t.Errorf("%s: %s, %q", name, p.Status, p.Reason)
		}
	}
}

func ptr(s string) *string { return &s }

// A VM without git says so.
func TestDeployWithoutGit(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"sh", "rm"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t)
	p, err := w.runner.Prepare(t.Context(), w.Acme, deploy.Request{Repo: w.repo})
	w.must(err)
	vm, err := w.Manager.Run(t.Context(), w.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true, Env: map[string]string{"PATH": bin}})
	w.must(err)
	p.VMID = vm.ID
	w.must(w.runner.Begin(t.Context(), p))
	if p = w.await(p.ID, deploy.Finished, deploy.Failed); p.Status != deploy.Failed || !strings.Contains(p.Reason, "git is not installed") {
		t.Errorf("%s, %q", p.Status, p.Reason)
	}
}

// versd ends in the middle of a step. The command goes on, and the next one sees its end.
func TestDeployOverRestart(t *testing.T) {
	w := newWorld(t)
	flag := filepath.Join(t.TempDir(), "go")
	p := w.deploy(deploy.Request{Repo: w.repo, Settings: deploy.Settings{
		Install: "echo once >> installs; while ! test -e " + flag + "; do sleep 0.02; done", Build: "test $(wc -l < installs) = 1"}})
	w.await(p.ID, deploy.Installing)
	w.runner.Close()
	w.Restart(t)
	w.start()
	w.must(w.runner.Resume(t.Context()))
	w.must(os.WriteFile(flag, nil, 0o600))
	if p = w.await(p.ID, deploy.Finished, deploy.Failed); p.Status != deploy.Finished {
		t.Errorf("%s, %q", p.Status, p.Reason)
	}
}

// A dead VM fails its project; a deleted one takes it along.
func TestDeployLosesItsVM(t *testing.T) {
	w := newWorld(t)
	waits := deploy.Settings{Run: "sleep 1000"}
	p := w.deploy(deploy.Request{Repo: w.repo, Settings: waits})
	w.await(p.ID, deploy.Running)
	w.Machine(t, p.VMID).Crash()
	if p = w.await(p.ID, deploy.Failed); !strings.Contains(p.Reason, "VM died") {
		t.Error(p.Reason)
	}
	if _, err := w.runner.Prepare(t.Context(), w.Acme, deploy.Request{Repo: w.repo}); !fault.Is(err, fault.Conflict) {
		t.Errorf("its name is taken: %v", err)
	}
	w.must(w.Manager.Delete(t.Context(), w.Acme, p.VMID, false))
	if _, err := w.runner.Project(t.Context(), w.Acme.OrgID, p.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
	p = w.deploy(deploy.Request{Repo: w.repo, Settings: waits})
	w.await(p.ID, deploy.Running)
	if _, err := w.runner.Project(t.Context(), w.Other.OrgID, p.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("another organisation sees it: %v", err)
	}
	w.must(w.Manager.Delete(t.Context(), w.Acme, p.VMID, false))
	w.runner.Close() // ends only if nobody waits for the VM any more
}

func TestParseRepo(t *testing.T) {
	for text, want := range map[string][2]string{
		"owner/repo":                        {"https://github.com/owner/repo.git", "repo"},
		"owner/repo.git":                    {"https://github.com/owner/repo.git", "repo"},
		"https://git.example.org/a/b/c.git": {"https://git.example.org/a/b/c.git", "c"},
		"http://127.0.0.1:80/x":             {"http://127.0.0.1:80/x", "x"},
		"ssh://git@example.org:22/a/b":      {"ssh://git@example.org:22/a/b", "b"},
		"git@example.org:a/b.git":           {"git@example.org:a/b.git", "b"},
		"git://example.org/a":               {"git://example.org/a", "a"},
	} {
		if source, name, err := deploy.ParseRepo(text); err != nil || source != want[0] || name != want[1] {
			t.Errorf("%s: %q %q %v", text, source, name, err)
		}
	}
	for _, bad := range []string{"", "x", "-a/b", "a/b/c", "--upload-pack=x", "file:///x", "ext::x", "https://u:p@h/x", "https://token@h/x", "https://h",
		"https://h/", "ssh://-oProxyCommand=x/y", "-x@h:y", "a@h:-x", "a b/c", "https://h/x\n", "https://h/x?y", "/etc", "../x", "ftp://h/x"} {
		if source, _, err := deploy.ParseRepo(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %q, %v", bad, source, err)
		}
	}
}

func FuzzParseRepo(f *testing.F) {
	for _, s := range []string{"owner/repo", "https://h/x.git", "git@h:a/b", "ssh://git@h/x", "-x", "ext::sh"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		source, name, err := deploy.ParseRepo(text)
		if err != nil {
			return
		}
		if strings.HasPrefix(source, "-") || strings.ContainsAny(source, " \n\x00") || strings.Contains(source, "::") && !strings.Contains(source, "//") || name == "" || strings.ContainsAny(name, "/\\") {
			t.Errorf("%q gives %q, %q", text, source, name)
		}
	})
}
