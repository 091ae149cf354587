package test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"vers/internal/build/engine"
	"vers/internal/build/engine/docker"
	"vers/internal/build/engine/embedded"
	"vers/internal/build/engine/enginetest"
	"vers/internal/image/imagetest"
)

// buildfsExample is the build script of the original's documentation: a Debian with systemd, a console and DNS. The second
// name server is added: the network of a test need not reach the first.
const buildfsExample = `[filesystem]
type = "Ext4"
size_mib = 350

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

for console in ttyS0; do
    mkdir "/etc/systemd/system/serial-getty@$console.service.d/"
    cat <<'EOF' > "/etc/systemd/system/serial-getty@$console.service.d/override.conf"
[Service]
# systemd requires this empty ExecStart line to override
ExecStart=
ExecStart=-/sbin/agetty --autologin root -o '-p -- \\\\u' --keep-baud 115200,38400,9600 %I dumb
EOF
done

passwd -d root

rm -rf /usr/share/{doc,man,info,locale}

cat >> /etc/sysctl.conf <<EOF
kernel.unprivileged_bpf_disabled=1
EOF
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

// TestBuildScript is T1 and T18 of spec/buildfs.md: on every engine, the original's example becomes a file system without
// faults, and a VM with systemd, a console and names. Engines that make the same files of it need one VM. The base has the example's packages: the containers of Docker and
// Podman are in a namespace without network here, and apt finds nothing to do.
func TestBuildScript(t *testing.T) {
	base := imagetest.Systemd(t)
	booted := map[string]string{} // by the digest of names, modes, owners, times and contents: the engine
	for _, name := range []string{engine.Embedded, engine.Docker, engine.Podman} {
		t.Run("T1 "+name, func(t *testing.T) {
			u := newUser(t, shared)
			t.Cleanup(func() { u.deleteAll(); u.try("vers rootfs delete -f demo") })
			flags := " --engine embedded"
			if name == engine.Embedded {
				loadImage(t, ownEngine(t, u), "debian:bookworm-slim", base)
			} else {
				socket, client := enginetest.Daemon{Name: name, Isolated: true}.Start(t)
				e, err := docker.New(t.Context(), docker.Options{Socket: socket})
				must(t, err)
				loadImage(t, e, "docker.io/library/debian:bookworm-slim", base)
				// The network that a container could have here leads nowhere, which apt takes half a minute to find out.
				flags = " --engine " + name + " --set container.network=none --set container.connection_uri=unix://" + socket
				if !allCapabilities(t) { // so nobody here can start the privileged container that the example asks for
					flags += " --set container.rootful=false"
				}
				defer func() {
					if left := enginetest.Containers(t, client); len(left) > 0 {
						t.Errorf("containers are left: %v", left)
					}
				}()
			}
			must(t, os.WriteFile(filepath.Join(u.dir, "build_script.toml"), []byte(buildfsExample), 0o644))
			var made struct{ Tree string }
			u.json(`vers rootfs build build_script.toml -o debian.ext4 --register demo --json --set container.image.pull=never`+flags, &made)
			u.run(`e2fsck -fn debian.ext4`)
			if got := u.run(`debugfs -R "cat /etc/resolv.conf" debian.ext4 2>/dev/null | head -1`); got != "nameserver 8.8.8.8" {
				t.Errorf("the overlay does not win: resolv.conf begins with %q (B6)", got)
			}
			if other := booted[made.Tree]; other != "" {
				t.Logf("the same files as from %s, which boot", other)
				return
			}
			bootDemo(t, u)
			booted[made.Tree] = name
		})
	}
}

// allCapabilities reports whether this process could give a container all capabilities.
func allCapabilities(t *testing.T) bool {
	t.Helper()
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	must(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(last)))
	must(t, err)
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	return strings.Contains(string(status), fmt.Sprintf("CapBnd:\t%016x\n", uint64(1)<<(n+1)-1))
}

// bootDemo is T18, and what T1 says of the VM.
func bootDemo(t *testing.T, u *user) {
	t.Helper()
	u.run(`vers run --rootfs demo --vm-alias demo --wait`)
	if got := u.run(`vers exec "true"; echo $?`); got != "0" {
		t.Errorf("T18: vers exec \"true\" says %s", got)
	}
	got := u.run(`vers execute demo 'cat /proc/1/comm; systemctl is-system-running --wait >/dev/null; systemctl is-active systemd-journald; test -d /var/lib/dpkg && echo kept; head -1 /etc/resolv.conf; cat /proc/sys/kernel/unprivileged_bpf_disabled; systemctl show -p ExecStart serial-getty@ttyS0 | grep -o autologin'`)
	if got != "systemd\nactive\nkept\nnameserver 8.8.8.8\n1\nautologin" {
		t.Errorf("the VM says\n%s", got)
	}
	if got := u.run(`vers execute demo 'getent ahostsv4 ` + knownName(t) + ` | head -1'`); net.ParseIP(strings.Split(got+" ", " ")[0]) == nil {
		t.Errorf("a name resolves to %q", got)
	}
}

var sourceHost = regexp.MustCompile(`(?m)^[^#]*\bhttps?://([A-Za-z0-9.-]+)`)

// knownName is a name that this host resolves: that of its package source, without which there would be no base.
func knownName(t *testing.T) string {
	t.Helper()
	lists, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	for _, path := range append(lists, "/etc/apt/sources.list") {
		text, _ := os.ReadFile(path) // there need not be one
		for _, match := range sourceHost.FindAllStringSubmatch(string(text), -1) {
			if _, err := net.DefaultResolver.LookupHost(t.Context(), match[1]); err == nil && net.ParseIP(match[1]) == nil {
				return match[1]
			}
		}
	}
	t.Skip("this host resolves no name of a package source")
	return ""
}

// ownEngine is the embedded engine of a user's commands.
func ownEngine(t *testing.T, u *user) engine.Engine {
	t.Helper()
	e, err := embedded.New(embedded.Options{Dir: filepath.Join(u.home, ".cache", "vers", "builder"), Store: "local", Program: filepath.Join(bin, "vers-builder")})
	must(t, err)
	return e
}

func loadImage(t *testing.T, e engine.Engine, name, path string) {
	t.Helper()
	file, err := os.Open(path)
	must(t, err)
	defer file.Close()
	_, err = e.Load(t.Context(), name, file, engine.Config{})
	must(t, errors.Join(err, e.Close()))
}

// small is a file system with little more than a shell.
func small(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "small.tar")
	must(t, os.WriteFile(path, enginetest.Base(t), 0o644))
	return path
}
