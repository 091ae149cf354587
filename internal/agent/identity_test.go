package agent

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/fault"
	"vers/internal/guest"
)

func (r *rig) write(name, content string, mode os.FileMode) {
	r.t.Helper()
	path := filepath.Join(r.root, name)
	must(r.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(r.t, os.WriteFile(path, []byte(content), mode))
	must(r.t, os.Chmod(path, mode))
}

func (r *rig) read(name string) string {
	r.t.Helper()
	data, err := os.ReadFile(filepath.Join(r.root, name))
	must(r.t, err)
	return string(data)
}

// TestRehearse: after it, a Renew lays out nothing new on the disk.
func TestRehearse(t *testing.T) {
	r := newRig(t)
	r.write("etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\timage\n", 0o644)
	r.write("etc/hostname", "image\n", 0o644)
	must(t, os.Link(filepath.Join(r.root, "etc/hostname"), filepath.Join(r.root, "etc/other-name")))
	must(t, r.server.Rehearse())
	files := []string{"etc/hostname", "etc/hosts", "etc/machine-id"}
	var before []os.FileInfo
	for _, name := range files {
		info, err := os.Stat(filepath.Join(r.root, name))
		must(t, err)
		before = append(before, info)
	}
	passing := r.read("etc/machine-id")
	id, _ := newIdentity(t, "one")
	id.Hostname = "vers-1a2b3c4d"
	_, err := r.client.Renew(t.Context(), id)
	must(t, err)
	for i, name := range files {
		info, err := os.Stat(filepath.Join(r.root, name))
		must(t, err)
		if !os.SameFile(before[i], info) {
			t.Errorf("%s is a new file", name)
		}
	}
	if got := r.read("etc/hostname") + r.read("etc/hosts") + r.read("etc/machine-id"); got != "vers-1a2b3c4d\n127.0.0.1\tlocalhost\n127.0.1.1\tvers-1a2b3c4d\n"+id.MachineID+"\n" {
		t.Errorf("the files hold %q", got)
	}
	if r.read("etc/other-name") != "image\n" {
		t.Error("a file that shared its inode with /etc/hostname was changed")
	}
	must(t, r.server.Rehearse()) // an agent that was started again in a VM with an identity
	if r.read("etc/hostname") != "vers-1a2b3c4d\n" || r.read("etc/machine-id") == passing {
		t.Error("a rehearsal took the identity away")
	}
}

func TestRenew(t *testing.T) {
	r := newRig(t)
	oldKey, _ := keyPair(t)
	r.write("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 old\n10.0.0.1 other", 0o644)
	r.write("etc/environment", "# mine\nLANG=C.UTF-8\n", 0o600)
	r.write("etc/ssh/ssh_host_ed25519_key", oldKey, 0o600)
	r.write("etc/ssh/ssh_host_ecdsa_key", "old", 0o600)
	r.write("var/lib/dbus/machine-id", "old\n", 0o644)
	id, _ := newIdentity(t, "one")
	id.Env["SEVERAL"] = "a\nb"

	conf, err := r.client.Renew(t.Context(), id)
	must(t, err)
	if conf.VMID != "one" || conf.Nonce != "nonce-one" || conf.Generation != 1 || conf.BootID != r.system.bootID {
		t.Errorf("confirmation %+v", conf)
	}
	if r.system.calls[0] != "entropy" || r.system.hostname != "vm-one" || !r.system.clock.Equal(id.Time) {
		t.Errorf("kernel was asked %v, host name %q, clock %v", r.system.calls, r.system.hostname, r.system.clock)
	}
	for name, want := range map[string]string{
		"etc/hostname":            "vm-one\n",
		"etc/hosts":               "127.0.0.1 localhost\n10.0.0.1 other\n127.0.1.1\tvm-one\n",
		"etc/machine-id":          id.MachineID + "\n",
		"var/lib/dbus/machine-id": id.MachineID + "\n",
	} {
		if got := r.read(name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
	for _, kind := range []string{"ed25519", "ecdsa"} {
		key := r.read("etc/ssh/ssh_host_" + kind + "_key")
		signer, err := ssh.ParsePrivateKey([]byte(key))
		must(t, err)
		pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(r.read("etc/ssh/ssh_host_" + kind + "_key.pub")))
		must(t, err)
		if string(pub.Marshal()) != string(signer.PublicKey().Marshal()) || key == oldKey {
			t.Errorf("%s host key is old, or does not match its public half", kind)
		}
	}
	var ev event
	must(t, json.Unmarshal([]byte(r.read("run/vers/identity.json")), &ev))
	if ev.Generation != 1 || ev.Reason != guest.ReasonBranch || ev.VMID != "one" {
		t.Errorf("event %+v", ev)
	}
	if res := r.sh(`echo "$LANG $GREETING $SEVERAL"`); res.stdout.String() != "C.UTF-8 hello world a\nb\n" {
		t.Errorf("environment of a command: %q", res.stdout.String())
	}

	next, _ := newIdentity(t, "two")
	next.Env = nil
	conf, err = r.client.Renew(t.Context(), next)
	must(t, err)
	if conf.Generation != 2 {
		t.Errorf("generation %d after the second Renew", conf.Generation)
	}
	if got := r.read("etc/environment"); got != "# mine\nLANG=C.UTF-8\n" {
		t.Errorf("environment file without variables of ours: %q", got)
	}
	if strings.Contains(r.read("run/vers/agent-state.json"), "BwcHBw") {
		t.Error("the entropy is kept")
	}

	// An agent that is started again knows who it is.
	again := New(r.server.config)
	if vm, generation := again.identity.current(); vm != "two" || generation != 2 || again.identity.hostKey == nil {
		t.Errorf("after a restart: VM %q, generation %d", vm, generation)
	}
}

// Every step that fails prevents the confirmation, and nothing is announced.
func TestRenewFailsClosed(t *testing.T) {
	for _, step := range []string{"entropy", "clock", "hostname", "boot-id"} {
		r := newRig(t)
		r.system.fail = step
		id, _ := newIdentity(t, "x")
		if conf, err := r.client.Renew(t.Context(), id); err == nil || conf.VMID != "" {
			t.Errorf("%s failed, yet confirmed: %+v", step, conf)
		}
		if exists(filepath.Join(r.root, eventFile)) {
			t.Errorf("%s failed, yet announced", step)
		}
		if _, err := r.client.SSH(t.Context()); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s failed, yet SSH is served: %v", step, err)
		}
	}
	files := map[string]string{"etc/machine-id": "machine id", "etc/environment": "environment", "etc/hostname": "host name"}
	for file := range files {
		r := newRig(t)
		must(t, os.MkdirAll(filepath.Join(r.root, file, "in the way"), 0o755))
		id, _ := newIdentity(t, "x")
		if _, err := r.client.Renew(t.Context(), id); err == nil {
			t.Errorf("%s could not be written, yet confirmed", file)
		}
	}
}

func TestRenewRefusesBadIdentities(t *testing.T) {
	r := newRig(t)
	for name, spoil := range map[string]func(*guest.Identity){
		"no VM":           func(id *guest.Identity) { id.VMID = "" },
		"host name":       func(id *guest.Identity) { id.Hostname = "a\nb" },
		"machine id":      func(id *guest.Identity) { id.MachineID = "0123" },
		"zero machine id": func(id *guest.Identity) { id.MachineID = strings.Repeat("0", 32) },
		"little entropy":  func(id *guest.Identity) { id.Entropy = id.Entropy[:63] },
		"no time":         func(id *guest.Identity) { id.Time = time.Time{} },
		"reason":          func(id *guest.Identity) { id.Reason = "" },
		"variable":        func(id *guest.Identity) { id.Env = map[string]string{"A B": ""} },
		"host key":        func(id *guest.Identity) { id.SSHHostKey = "no key" },
		"authorized key":  func(id *guest.Identity) { id.AuthorizedKeys = []string{"ssh-rsa nonsense"} },
	} {
		id, _ := newIdentity(t, "x")
		spoil(&id)
		if _, err := r.client.Renew(t.Context(), id); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(r.system.calls) > 0 {
		t.Errorf("the kernel was asked for %v", r.system.calls)
	}
}

func TestRenewDropsConnectionsOfAnotherLife(t *testing.T) {
	r := newRig(t)
	s, err := r.client.Exec(t.Context(), guest.ExecRequest{ID: "old", Command: []string{"cat"}, Stdin: guest.StdinStream})
	must(t, err)
	id, _ := newIdentity(t, "x")
	_, err = r.client.Renew(t.Context(), id)
	must(t, err)
	if _, err := s.Recv(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the older stream goes on: %v", err)
	}
}

func TestRSAHostKeyComesLater(t *testing.T) {
	r := newRig(t)
	r.write("etc/ssh/ssh_host_rsa_key", "old", 0o600)
	r.write("etc/ssh/ssh_host_rsa_key.pub", "old", 0o644)
	id, _ := newIdentity(t, "x")
	_, err := r.client.Renew(t.Context(), id)
	must(t, err)
	r.eventually("the marker goes", func() bool { return !exists(filepath.Join(r.root, rsaMarker)) })
	_, err = ssh.ParsePrivateKey([]byte(r.read("etc/ssh/ssh_host_rsa_key")))
	must(t, err)
}

func TestHooks(t *testing.T) {
	r := newRig(t)
	out := filepath.Join(r.root, "out")
	r.write("etc/vers/clone.d/20-second", "#!/bin/sh\necho second >> "+out+"\n", 0o755)
	r.write("etc/vers/clone.d/10-first", "#!/bin/sh\necho $VERS_VM_ID $VERS_REASON $VERS_GENERATION $GREETING >> "+out+"\nexit 1\n", 0o755)
	r.write("etc/vers/clone.d/README", "not executable", 0o644)
	id, _ := newIdentity(t, "x")
	_, err := r.client.Renew(t.Context(), id)
	must(t, err)
	r.eventually("both hooks have ended", func() bool {
		return exists(filepath.Join(r.root, hookLog)) && strings.Contains(r.read(hookLog), "20-second: exit code")
	})
	if got := r.read("out"); got != "x branch 1 hello world\nsecond\n" {
		t.Errorf("hooks wrote %q", got)
	}
	if log := r.read("run/vers/clone.d.log"); !strings.Contains(log, "10-first: exit code 1\n") {
		t.Errorf("log of the hooks: %q", log)
	}
}

func TestEnvironmentFile(t *testing.T) {
	vars := map[string]string{"A": "1", "Q": `say "hi" \ $X`, "E": ""}
	first := renderEnvironment("OLD=x\nA=image", vars)
	got := parseEnvironment(first)
	for k, v := range vars {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	if got["OLD"] != "x" {
		t.Errorf("the image's own variable is %q", got["OLD"])
	}
	if second := renderEnvironment(first, vars); second != first {
		t.Errorf("written twice:\n%s", second)
	}
	if gone := renderEnvironment(first, nil); gone != "OLD=x\nA=image\n" {
		t.Errorf("without variables: %q", gone)
	}
}

func TestSystemOperations(t *testing.T) {
	r := newRig(t)
	must(t, r.client.Sync(t.Context()))
	must(t, r.client.GrowRootTo(t.Context(), 1))
	must(t, r.client.PowerOff(t.Context()))
	r.eventually("the kernel was asked for all", func() bool {
		r.system.mu.Lock()
		defer r.system.mu.Unlock()
		return slices.Equal(r.system.calls, []string{"sync", "grow", "power-off"})
	})
	info, err := r.client.Hello(t.Context())
	must(t, err)
	if info.Version != "test" || !info.Ready || info.Main != guest.MainReaper {
		t.Errorf("info %+v", info)
	}
}
