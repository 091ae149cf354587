package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vers/internal/image/imagetest"
)

// systemdImage makes a root file system with systemd, D-Bus and the image's own sshd, the way many users' images are.
func systemdImage(t *testing.T, path string) {
	t.Helper()
	root, err := os.MkdirTemp("/var/tmp", "vers-test.")
	must(t, err)
	defer os.RemoveAll(root)
	must(t, os.Chmod(root, 0o755))
	sh(t, "mmdebstrap --quiet --variant=minbase --include=systemd-sysv,dbus,openssh-server,procps,iproute2 bookworm "+root+"/tree >/dev/null")
	sh(t, "rm -f "+path+"; truncate -s 1G "+path+" && mke2fs -q -F -t ext4 -b 4096 -i 16384 -J size=16 -d "+root+"/tree "+path)
}

// TestSystemd runs an image whose first process is systemd: the agent hands over to it and stays.
func TestSystemd(t *testing.T) {
	dir := scratch(t)
	s := &server{dir: dir}
	must(t, os.MkdirAll(s.data()+"/images", 0o711))
	must(t, os.Chmod(dir, 0o711))
	systemdImage(t, filepath.Join(s.data(), "images", "default.ext4"))
	base, err := imagetest.Base(t.Context())
	must(t, err)
	must(t, linkTree(filepath.Join(base, "kernels"), filepath.Join(s.data(), "kernels")))
	must(t, s.configure())
	must(t, s.start())
	t.Cleanup(func() {
		if err := s.stopAll(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(s.log())
		}
	})
	u := newUser(t, s)
	u.run(`vers run --vm-alias base --wait`)
	if got := u.run(`vers execute base 'cat /proc/1/comm; systemctl is-system-running --wait; systemctl is-active ssh dbus'`); got != "systemd\nrunning\nactive\nactive" {
		t.Errorf("systemd says\n%s\n%s", got, u.run(`vers execute base 'systemctl --failed; journalctl -b -p warning --no-pager | tail -30'`))
	}
	u.run(`vers execute base 'systemd-run --unit=count --quiet sh -c "n=0; while :; do n=\$((n+1)); echo \$n >> /run/count; sleep 0.05; done"'`)
	// The agent is no service of the image: nothing that systemd does to its own takes it away.
	u.run(`vers execute base 'systemctl daemon-reexec; systemctl restart dbus ssh systemd-journald'`)
	commit := u.run(`vers commit base --format json | jq -r .commit_id`)
	u.run(`vers branch base --count 2 --format json | jq -r '.new_ids[]' > ids; vers run-commit ` + commit + ` -N restored --wait`)
	u.run(`{ cat ids; vers alias restored; vers alias base; } > all`)
	seen := map[string]bool{}
	for _, id := range strings.Fields(u.run(`cat all`)) {
		who := u.run(fmt.Sprintf(`vers execute %s 'hostname; cat /etc/machine-id; ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub'`, id))
		if !strings.HasPrefix(who, "vers-"+id[:8]) || seen[who] {
			t.Errorf("VM %s is\n%s", id, who)
		}
		seen[who] = true
		u.run(`vers execute ` + id + ` 'systemctl is-active count && a=$(wc -l < /run/count); until [ $(wc -l < /run/count) -gt $a ]; do sleep 0.1; done'`)
	}
	u.try(`vers execute restored 'systemctl poweroff'`)
	eventually(t, "a machine that powered off is dead", func() error {
		if state := u.run(`vers info restored --format json | jq -r .state`); state != "dead" {
			return fmt.Errorf("it is %s", state)
		}
		return nil
	})
}
