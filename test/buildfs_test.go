package test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded"
)

// buildfsExample is the build script of the original's documentation: a Debian with systemd and DNS.
const buildfsExample = `[filesystem]
type = "Ext4"
size_mib = 250

[container]
engine = "Docker"
rootful = true
wait_timeout_s = 1
image = { name = "docker.io/library/debian", tag = "bookworm-slim" }

[[commands]]
script_inline = """
#!/bin/bash

apt update
apt install -y udev systemd-sysv iputils-ping curl

rm -f /etc/systemd/system/multi-user.target.wants/systemd-resolved.service
rm -f /etc/systemd/system/dbus-org.freedesktop.resolve1.service
rm -f /etc/systemd/system/sysinit.target.wants/systemd-timesyncd.service

systemctl disable e2scrub_reap.service
rm -vf /etc/systemd/system/timers.target.wants/*

passwd -d root

rm -rf /usr/share/{doc,man,info,locale}
"""

[[overlays]]
source_inline = """
nameserver 8.8.8.8
nameserver 10.77.0.1
"""
destination = "/etc/resolv.conf"

[export.directories]
include = [ "/bin", "/etc", "/home", "/lib", "/lib64", "/root", "/sbin", "/usr" ]
create = [ "/var/lib/dpkg", "/dev", "/proc", "/sys", "/run", "/tmp", "/var/lib/systemd" ]
`

// TestBuildScript is T1 and T18 of spec/buildfs.md: the original's example becomes a file system without faults, and a VM
// whose first process is systemd.
func TestBuildScript(t *testing.T) {
	u := newUser(t, shared)
	must(t, os.WriteFile(filepath.Join(u.dir, "build_script.toml"), []byte(buildfsExample), 0o644))
	loadDebian(t, u)
	t.Cleanup(func() { u.deleteAll(); u.try("vers rootfs delete -f debian-demo") })
	u.run(`vers rootfs build build_script.toml -o debian.ext4 --register debian-demo --engine embedded --set container.image.name=localhost/debian --set container.image.pull=never`)
	u.run(`e2fsck -fn debian.ext4`)
	if got := u.run(`debugfs -R "cat /etc/resolv.conf" debian.ext4 2>/dev/null | head -1`); got != "nameserver 8.8.8.8" {
		t.Errorf("the overlay does not win: resolv.conf begins with %q", got)
	}
	u.run(`vers run --rootfs debian-demo --vm-alias demo --wait`)
	if got := u.run(`vers execute demo 'cat /proc/1/comm; systemctl is-system-running --wait >/dev/null; systemctl is-active systemd-journald; test -d /var/lib/dpkg && echo kept'`); got != "systemd\nactive\nkept" {
		t.Errorf("the VM says\n%s", got)
	}
	u.run(`vers exec demo "true"`)
	u.run(`vers execute demo 'getent hosts localhost'`)
}

// loadDebian puts a Debian with the tag of the example's image into the user's own engine.
func loadDebian(t *testing.T, u *user) {
	t.Helper()
	program := filepath.Join(bin, "vers-builder")
	sh(t, "make --no-print-directory -C .. builder BUILDER="+program)
	e, err := embedded.New(embedded.Options{Dir: filepath.Join(u.home, ".cache", "vers", "builder"), Store: "local", Program: program})
	must(t, err)
	cmd := exec.Command("mmdebstrap", "--quiet", "--variant=minbase", "bookworm", "-")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = e.Load(t.Context(), "debian:bookworm-slim", out, engine.Config{})
	_, _ = io.Copy(io.Discard, out)
	if waitErr := cmd.Wait(); waitErr != nil || err != nil {
		t.Fatalf("make the base: %v, %v\n%s", waitErr, err, stderr.String())
	}
}
