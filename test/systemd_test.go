package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vers/internal/image/imagetest"
)

// TestSystemd runs an image whose first process is systemd: the agent hands over to it and stays.
func TestSystemd(t *testing.T) {
	u := newUser(t, shared)
	t.Cleanup(func() { u.deleteAll(); u.try("vers rootfs delete -f systemd") })
	u.run(`vers rootfs import ` + imagetest.Systemd(t) + ` --name systemd`)
	u.run(`vers run --rootfs systemd --vm-alias base --wait`)
	if got := u.run(`vers execute base 'cat /proc/1/comm; systemctl is-system-running --wait; systemctl is-active ssh dbus'`); got != "systemd\nrunning\nactive\nactive" {
		t.Errorf("systemd says\n%s\n%s", got, u.run(`vers execute base 'systemctl --failed; journalctl -b -p warning --no-pager | tail -30'`))
	}
	must(t, os.WriteFile(filepath.Join(u.dir, "count"), []byte(counting+"systemd-run --unit=count --quiet perl /root/count.pl /run/count"), 0o600))
	u.run(`vers execute base "$(cat count)"`)
	// The agent is no service of the image: nothing that systemd does to its own takes it away.
	u.run(`vers execute base 'systemctl daemon-reexec; systemctl restart dbus ssh systemd-journald'`)
	commit := u.run(`vers commit base --format json | jq -r .commit_id`)
	u.run(`vers branch base --count 2 --format json | jq -r '.new_ids[]' > ids; vers run-commit ` + commit + ` -N restored --wait`)
	u.run(`{ cat ids; vers alias restored; vers alias base; } > all`)
	seen := map[string]bool{}
	for _, id := range strings.Fields(u.run(`cat all`)) {
		who := u.run(`vers execute ` + id + ` 'a=$(wc -l < /run/count); hostname; cat /etc/machine-id; ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub
systemctl is-active count >&2 && until [ $(wc -l < /run/count) -gt $a ]; do sleep 0.1; done'`)
		lines := strings.Split(who, "\n")
		if len(lines) != 3 || lines[0] != "vers-"+id[:8] {
			t.Errorf("VM %s is\n%s", id, who)
		}
		for _, line := range lines {
			if seen[line] {
				t.Errorf("VM %s shares %q with another", id, line)
			}
			seen[line] = true
		}
	}
	u.try(`vers execute restored 'systemctl poweroff'`)
	eventually(t, "a machine that powered off is dead", func() error {
		if state := u.run(`vers info restored --format json | jq -r .state`); state != "dead" {
			return fmt.Errorf("it is %s", state)
		}
		return nil
	})
}
