package buildfs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vers/internal/build/engine"
	"vers/internal/build/engine/docker"
	"vers/internal/build/engine/enginetest"
	"vers/internal/rootfs"
)

// onDaemon is a bench with the engine of a daemon.
func onDaemon(t *testing.T, d enginetest.Daemon) (b *bench, client []string) {
	t.Helper()
	d.Isolated = true
	socket, client := d.Start(t)
	e, err := docker.New(t.Context(), docker.Options{Socket: socket})
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	_, err = e.Load(t.Context(), "base:1", bytes.NewReader(base(t)), engine.Config{})
	must(t, err)
	return &bench{Engine: e}, client
}

// T4, B3, B4: what pack collects is what is built: an external script, a file, a folder with subfolders.
func TestT4PackThenBuild(t *testing.T) {
	dir := writeFiles(t, map[string]string{
		ScriptName: onBase + `
[[commands]]
script_path = "/scripts/a.sh"
[[overlays]]
source = "files/motd"
destination = "/etc/motd"
[[overlays]]
source = "tree"
destination = "/opt/tree"
is_directory = true
[export]
all = true
`, "scripts/a.sh*": "#!/bin/sh\necho ran > /etc/ran\n", "files/motd": "overlaid\n", "tree/a/b/c": "deep", "tree/d*": "#!/bin/sh\n",
	})
	path := filepath.Join(t.TempDir(), "p.tar.gz")
	_, err := Pack(t.Context(), filepath.Join(dir, ScriptName), path, KindTarGz, false, CheckOptions{})
	must(t, err)
	must(t, os.RemoveAll(dir)) // the package is all there is
	o := newBench(t).build(t, path, noImage)
	must(t, o.err)
	for name, want := range map[string]string{"etc/ran": "ran\n", "etc/motd": "overlaid\n", "opt/tree/a/b/c": "deep", "opt/tree/d": "#!/bin/sh\n"} {
		if got := o.entries[name].content; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if o.entries["opt/tree/d"].Mode&0o111 == 0 || o.entries["opt/tree/a/b/c"].Mode&0o111 != 0 {
		t.Error("pack does not keep who may execute")
	}
}

// T10, B12: squashfs is mounted by the kernel and cannot be written; vfat is refused, in words, before anything runs.
func TestT10Squashfs(t *testing.T) {
	b := newBench(t)
	o := b.buildScript(t, onBase+"[filesystem]\ntype='Squashfs'\n[export]\nall=true\n", nil)
	must(t, o.err)
	root := t.TempDir()
	mountLoop(t, o.output, root, "squashfs")
	text, err := os.ReadFile(filepath.Join(root, "etc/motd"))
	if string(text) != "the image's\n" {
		t.Errorf("/etc/motd is %q, %v", text, err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(root, "usr/lib/deep/er/file"), &st))
	if st.Mode&0o7777 != 0o4755 || st.Uid != 1000 || st.Gid != 50 || st.Nlink != 4 {
		t.Errorf("a set-uid file with hard links: %+v", st)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/motd"), nil, 0o644); err == nil {
		t.Error("squashfs can be written")
	}
	_, report := check(t, onBase+"[filesystem]\ntype='Vfat'\n[export]\nall=true\n", nil, CheckOptions{})
	if got := messages(report.Faults); !strings.Contains(got, "filesystem.type: vfat holds no owners, modes and links") {
		t.Errorf("vfat: %s", got)
	}
}

// mountLoop mounts a file with the kernel's own driver, until the test ends.
func mountLoop(t *testing.T, image, target, kind string) {
	t.Helper()
	kinds, err := os.ReadFile("/proc/filesystems")
	must(t, err)
	if !strings.Contains(string(kinds), "\t"+kind+"\n") {
		t.Skipf("this kernel has no %s", kind)
	}
	run(t, "mount", "-t", kind, "-o", "loop,ro", image, target)
	t.Cleanup(func() { run(t, "umount", target) })
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// All engines give the same content of the same script, and what they add of their own is not in it.
func TestEnginesAgree(t *testing.T) {
	script := `
[[commands]]
script_inline = """
#!/bin/sh
set -e
id -u > /etc/who
cat /etc/mounted > /etc/seen
mkdir -m 1777 /opt/sticky
ln /opt/hard /opt/hard3
"""
uid = 0
[[commands]]
command = "id -u > /tmp/who; pwd >> /tmp/who"
uid = 1000
gid = 1000
working_dir = "/home/user"
[[overlays]]
source_inline = "mounted\n"
destination = "/etc/mounted"
mounted = true
[export]
all = true
[filesystem]
size_mib = 64
`
	var first outcome
	build := func(name string, b *bench) {
		t.Run(name, func(t *testing.T) {
			o := b.buildScript(t, strings.Replace(onBase, "embedded", name, 1)+script, nil)
			must(t, o.err)
			if got := o.entries["etc/seen"].content + o.entries["tmp/who"].content; got != "mounted\n1000\n/home/user\n" {
				t.Errorf("the commands left %q", got)
			}
			if first.Result == nil {
				first = o
			}
			if diff := cmp.Diff(lines(first.entries), lines(o.entries)); diff != "" {
				t.Errorf("its content is another than that of %s:\n%s", first.Engine, diff)
			}
			if _, ok := o.entries["run/.containerenv"]; ok {
				t.Error("Podman's mark of containers is in the file system")
			}
		})
	}
	build(engine.Embedded, newBench(t))
	for _, name := range []string{engine.Docker, engine.Podman} {
		b, client := onDaemon(t, enginetest.Daemon{Name: name})
		build(name, b)
		if left := enginetest.Containers(t, client); len(left) > 0 {
			t.Errorf("%s has containers left: %v (B13)", name, left)
		}
	}
}

// lines are what a tree's digest is made of. What preparing for VMs replaces is left out, and /etc/mtab, which is Docker's.
func lines(entries map[string]entry) map[string]string {
	all := map[string]string{}
	for name, e := range entries {
		if !slices.Contains(append([]string{"/dev", "/run", "/etc/mtab"}, rootfs.Mended...), "/"+name) && !strings.HasPrefix(name, "dev/") {
			all[name] = fmt.Sprintf("%c %o %d:%d %s %q %q %.9s", e.Typeflag, e.Mode&0o7777, e.Uid, e.Gid, e.ModTime.UTC(), e.Linkname, e.PAXRecords, digestOf([]byte(e.content)))
		}
	}
	return all
}

// T16, B16: with user namespaces, builds work; a privileged container is refused in words that help.
func TestT16UserNamespaces(t *testing.T) {
	ranges := filepath.Join(t.TempDir(), "ranges")
	must(t, os.WriteFile(ranges, []byte("nobody:100000:65536\nnogroup:100000:65536\n"), 0o644))
	b, client := onDaemon(t, enginetest.Daemon{
		Name: engine.Docker, Prepare: "mount --bind " + ranges + " /etc/subuid; mount --bind " + ranges + " /etc/subgid", Args: []string{"--userns-remap=nobody:nogroup"},
	})
	const commands = "[[commands]]\ncommand='cat /proc/self/uid_map > /etc/map; id -u > /etc/who; chown 1000:50 /etc/who'\n[export]\nall=true\n"
	o := b.buildScript(t, strings.Replace(onBase, "embedded", "docker", 1)+"rootful = false\n"+commands, nil)
	must(t, o.err)
	if got := strings.Fields(o.entries["etc/map"].content); len(got) != 3 || got[1] != "100000" {
		t.Errorf("the engine has no user namespace: %q", got)
	}
	if e := o.entries["etc/who"]; e.content != "0\n" || e.Uid != 1000 || e.Gid != 50 {
		t.Errorf("a command's file: %+v", e)
	}
	if e := o.entries["usr/lib/deep/er/file"]; e.Uid != 1000 && o.entries["opt/hard"].Uid != 1000 {
		t.Errorf("an image's file: %+v", e)
	}
	o = b.buildScript(t, strings.Replace(onBase, "embedded", "docker", 1)+"rootful = true\n"+commands, nil)
	if o.err == nil || !strings.Contains(o.err.Error(), "container.rootful = true") || !strings.Contains(o.err.Error(), "try rootful = false") {
		t.Errorf("rootful: %v", o.err)
	}
	if left := enginetest.Containers(t, client); len(left) > 0 || len(o.left) > 0 {
		t.Errorf("it leaves containers %v, files %v", left, o.left)
	}
}
