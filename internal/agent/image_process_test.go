package agent

import (
	"os"
	"path/filepath"
	"testing"

	"vers/internal/fault"
	"vers/internal/guest"
)

// imaged is an agent whose image says how its processes are run.
func imaged(t *testing.T, p guest.Process) *rig {
	t.Helper()
	r := newRig(t)
	r.write("etc/environment", "PATH=/image/bin\nOWN=image\nLEVEL=file\n", 0o644)
	id, _ := newIdentity(t, "one")
	id.Env = map[string]string{"LEVEL": "organisation"}
	id.Process = p
	_, err := r.client.Renew(t.Context(), id)
	must(t, err)
	return r
}

// Commands get what the image says, unless they or the organisation's variables say otherwise.
func TestProcessOfTheImage(t *testing.T) {
	dir := t.TempDir()
	path := "/opt/app/bin:" + os.Getenv("PATH")
	r := imaged(t, guest.Process{WorkingDir: dir, Env: map[string]string{"PATH": path, "APP": "yes", "LEVEL": "Dockerfile"}})
	print := guest.ExecRequest{Command: []string{"sh", "-c", `echo "$PATH|$APP|$OWN|$LEVEL|$PWD"`}}
	if got, want := r.exec(print).stdout.String(), path+"|yes|image|organisation|"+dir+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	home := filepath.Join(r.root, "home")
	print.WorkingDir, print.Env = home, map[string]string{"APP": "no", "LEVEL": "command"}
	if got, want := r.exec(print).stdout.String(), path+"|no|image|command|"+home+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := r.read("etc/environment"); got == "" || parseEnvironment(got)["APP"] != "" {
		t.Errorf("the image's variables are its own: %q", got)
	}
	// A folder that is gone is no reason to run nothing.
	must(t, os.Remove(dir))
	print.WorkingDir, print.Env = "", nil
	if got, want := r.exec(print).stdout.String(), path+"|yes|image|organisation|"+home+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// An agent that takes over from one before it knows it too.
	next := New(r.server.config)
	if next.identity.process().WorkingDir != dir {
		t.Errorf("after a restart: %+v", next.identity.process())
	}
}

func TestUserOfTheImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("other users' processes can be started by root only")
	}
	env := map[string]string{"PATH": os.Getenv("PATH")}
	r := imaged(t, guest.Process{User: "12345:54321", Env: env})
	who := guest.ExecRequest{Command: []string{"sh", "-c", "id -u; id -g; id -G"}}
	if got := r.exec(who).stdout.String(); got != "12345\n54321\n54321\n" {
		t.Errorf("the image's user: %q", got)
	}
	who.User = "root"
	if got := r.exec(who).stdout.String(); got[:2] != "0\n" {
		t.Errorf("the command's user: %q", got)
	}
	r = imaged(t, guest.Process{User: "nobody-knows", Env: env})
	if got := r.exec(guest.ExecRequest{Command: []string{"id"}}); got.code != exitCannotRun {
		t.Errorf("an unknown user: %d %s", got.code, got.stderr.String())
	}
	if got := r.exec(guest.ExecRequest{Command: []string{"true"}, User: "root"}); got.code != 0 {
		t.Errorf("root beside an unknown user: %d %s", got.code, got.stderr.String())
	}
}

func TestBadProcessOfTheImage(t *testing.T) {
	r := newRig(t)
	id, _ := newIdentity(t, "one")
	id.Process.Env = map[string]string{"A=B": "x"}
	if _, err := r.client.Renew(t.Context(), id); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}
