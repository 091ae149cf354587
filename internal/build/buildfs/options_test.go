package buildfs

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vers/internal/fault"
)

// T8, B9, B10: scripts run as any user; a line is the shell's, a list is not.
func TestT8Commands(t *testing.T) {
	b := newBench(t)
	o := b.buildScript(t, onBase+`
[container.env]
A = "from the container"
[[commands]]
script_inline = """
#!/bin/sh
id -u; id -g; pwd; echo "$A, $B"
"""
uid = 1000
gid = 50
working_dir = "/home/user"
env = { B = "from the command" }
[[commands]]
script_inline = "echo no interpreter"
[[commands]]
command = "echo 'a  b' | tr a-z A-Z && echo $A"
[[commands]]
command = ["echo", "$A", "a  b"]
[[commands]]
command = "echo 'a  b'"
shell = "none"
[export]
all = true
`, noImage)
	must(t, o.err)
	want := "1000\n50\n/home/user\nfrom the container, from the command\nno interpreter\nA  B\nfrom the container\n$A a  b\n'a b'\n"
	if got := strings.ReplaceAll(o.log, "    ", ""); got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
	if names := names(o.entries); strings.Contains(names, scriptFolder) {
		t.Error("the scripts are in the file system")
	}
}

// B24: scripts with the same text are two files, and both run.
func TestSameScriptTwice(t *testing.T) {
	const again = "[[commands]]\nscript_inline = \"#!/bin/sh\\necho $0 >> /etc/ran\\n\"\n"
	o := newBench(t).buildScript(t, onBase+again+again+"[export]\nall = true\n", noImage)
	must(t, o.err)
	if got := strings.Fields(o.entries["etc/ran"].content); len(got) != 2 || got[0] == got[1] {
		t.Errorf("ran as %q", got)
	}
}

// T9, B11, B28: parents of what is included come along; links on the way too; exclude and create.
func TestT9Export(t *testing.T) {
	b := newBench(t)
	o := b.buildScript(t, onBase+`
[export]
exclude = ["hard", "/etc/motd"]
[export.directories]
include = ["/usr/lib/deep/er", "/lib/deep"]
create = ["/var/lib/x/y", "/proc", "/var/lib/x"]
[export.files]
include = ["/etc/passwd", "/etc/motd", "/bin/ls"]
create = ["/etc/empty", "/etc/passwd"]
`, noImage)
	must(t, o.err)
	want := "bin bin/busybox bin/ls etc etc/empty etc/passwd lib proc usr usr/lib usr/lib/deep usr/lib/deep/er usr/lib/deep/er/file var/lib/x var/lib/x/y"
	if got := names(o.entries); got != want {
		t.Errorf("exported\n%s\nwant\n%s", got, want)
	}
	if o.entries["etc/passwd"].content == "" || o.entries["etc/empty"].Typeflag != tar.TypeReg {
		t.Error("create empties a file that is there")
	}
	o = b.buildScript(t, onBase+"[export.directories]\ninclude=['/nowhere', '/etc']\n[export.files]\ninclude=['/etc', '/no/file']\n", noImage)
	if !fault.Is(o.err, fault.Invalid) || !strings.Contains(o.err.Error(), "/nowhere is not in") || !strings.Contains(o.err.Error(), "/etc is a folder") || !strings.Contains(o.err.Error(), "/no/file is not in") {
		t.Errorf("what is not there: %v", o.err)
	}
}

// T13, B18: without a size the file system has room for the content and the head-room.
func TestT13AutomaticSize(t *testing.T) {
	b := newBench(t)
	o := b.buildScript(t, onBase+"[filesystem]\nheadroom_mib = 40\n[export]\nall = true\n", nil)
	must(t, o.err)
	if o.SizeMiB < 41 || o.SizeMiB > 80 {
		t.Errorf("%d MiB with 40 MiB of head-room", o.SizeMiB)
	}
	stats := debugfs(t, o.output, "show_super_stats -h")
	free, size := field(t, stats, "Free blocks"), field(t, stats, "Block size")
	if free*size>>20 < 38 {
		t.Errorf("%d MiB are free, 40 were asked for", free*size>>20)
	}
	if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", o.output).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	o = b.buildScript(t, onBase+"[filesystem]\nsize_mib = 1\n[export]\nall = true\n", nil)
	if o.err == nil || len(o.left) > 0 {
		t.Errorf("a file system that is too small: %v, left %v", o.err, o.left)
	}
}

// T14, B19: nothing has changed, nothing runs; what matters for the commands makes them run again.
func TestT14Cache(t *testing.T) {
	b := newBench(t)
	cacheDir := t.TempDir()
	script := onBase + "[[commands]]\ncommand='echo ran > /etc/ran'\n[[commands]]\nscript_path='a.sh'\n[[overlays]]\nsource='file'\ndestination='/etc/file'\n[export]\nall=true\n"
	dir := writeFiles(t, map[string]string{ScriptName: script, "a.sh*": "#!/bin/sh\n", "file": "1"})
	build := func(noCache bool) outcome {
		b.commands, b.sessions = nil, 0
		o := b.build(t, dir, func(o *Options, _ *CheckOptions) { o.CacheDir, o.Output, o.NoCache = cacheDir, "", noCache })
		must(t, o.err)
		return o
	}
	if o := build(false); len(b.commands) != 2 || o.Cached {
		t.Errorf("the first build runs %v", b.commands)
	}
	if o := build(false); len(b.commands) != 0 || b.sessions != 0 || !o.Cached || len(o.Steps) != 2 || !o.Steps[0].Cached || o.entries["etc/ran"].content != "ran\n" {
		t.Errorf("the second build runs %v in %d containers: %+v", b.commands, b.sessions, o.Result)
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("2"), 0o644))
	if o := build(false); len(b.commands) != 0 || o.entries["etc/file"].content != "2" {
		t.Errorf("after a change of an overlay it runs %v, the file is %q", b.commands, o.entries["etc/file"].content)
	}
	if build(true); len(b.commands) != 2 {
		t.Errorf("--no-cache runs %v", b.commands)
	}
	must(t, os.WriteFile(filepath.Join(dir, "a.sh"), []byte("#!/bin/sh\ntrue\n"), 0o755))
	if build(false); len(b.commands) != 2 {
		t.Errorf("after a change of a script it runs %v", b.commands)
	}
	must(t, cache{cacheDir}.shrink(0, ""))
	if left, _ := os.ReadDir(cacheDir); len(left) != 0 {
		t.Errorf("an emptied cache has %v", left)
	}
}

// T17: an interrupt during a script leaves nothing.
func TestT17Interrupt(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	cacheDir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted by a test")
	p := open(t, writeFiles(t, map[string]string{ScriptName: onBase + "[[commands]]\ncommand='echo begun; sleep 600'\n[export]\nall=true\n"}))
	script, _, err := p.Check(CheckOptions{})
	must(t, err)
	begun := writerFunc(func(data []byte) { cancel(interrupted) })
	started := time.Now()
	_, err = Build(ctx, p, script, Options{Engine: b, Output: filepath.Join(dir, "out"), CacheDir: cacheDir, Log: begun})
	if !errors.Is(err, interrupted) || time.Since(started) > time.Minute {
		t.Errorf("after %v: %v", time.Since(started), err)
	}
	for _, d := range []string{dir, cacheDir} {
		if left, _ := os.ReadDir(d); len(left) != 0 {
			t.Errorf("it leaves %v", left)
		}
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(data []byte) (int, error) { f(data); return len(data), nil }

func TestTimeLimits(t *testing.T) {
	b := newBench(t)
	o := b.buildScript(t, onBase+"[[commands]]\nname='slow'\ncommand='sleep 600'\ntimeout_s=1\n[export]\nall=true\n", nil)
	if !fault.Is(o.err, fault.Timeout) || !strings.Contains(o.err.Error(), "(slow) took more than its timeout_s, 1s") {
		t.Errorf("timeout_s: %v", o.err)
	}
	o = b.buildScript(t, strings.Replace(onBase, "[container]", "[container]\ntimeout = 1", 1)+"[[commands]]\ncommand='sleep 600'\n[export]\nall=true\n", nil)
	if !fault.Is(o.err, fault.Timeout) || !strings.Contains(o.err.Error(), "container.timeout") {
		t.Errorf("container.timeout: %v", o.err)
	}
}

// Volumes of a package are there, read-only, and stay out of the file system.
func TestVolumes(t *testing.T) {
	b := newBench(t)
	dir := writeFiles(t, map[string]string{ScriptName: onBase + "volumes = { data = '/mnt/data' }\n[[commands]]\ncommand='cat /mnt/data/x > /etc/x; ! echo y > /mnt/data/y'\n[export]\nall=true\n", "data/x": "x"})
	o := b.build(t, dir, noImage)
	must(t, o.err)
	if o.entries["etc/x"].content != "x" {
		t.Errorf("the command read %q", o.entries["etc/x"].content)
	}
	if _, ok := o.entries["mnt/data/x"]; ok {
		t.Error("the volume is in the file system")
	}
	host := t.TempDir()
	o = b.buildScript(t, onBase+"volumes = { '"+host+"' = '/mnt/host' }\n[[commands]]\ncommand='echo out > /mnt/host/y'\n[export]\nall=true\n",
		func(o *Options, c *CheckOptions) { o.Output, o.HostVolumes, c.HostVolumes = "", true, true })
	must(t, o.err)
	if data, _ := os.ReadFile(filepath.Join(host, "y")); string(data) != "out\n" {
		t.Errorf("a folder of the host has %q", data)
	}
}

func TestGuest(t *testing.T) {
	b := newBench(t)
	o := b.buildScript(t, onBase+"[guest]\ninit='/bin/busybox'\nssh=false\n[export]\nall=true\n", noImage)
	must(t, o.err)
	if e := o.entries["sbin/init"]; e.Linkname != "/bin/busybox" {
		t.Errorf("init: %+v", e)
	}
	if _, ok := o.entries[noSSH]; !ok {
		t.Error("ssh = false leaves no mark")
	}
	o = b.buildScript(t, onBase+"[guest]\ninit='/bin/none'\n[export]\nall=true\n", noImage)
	if !fault.Is(o.err, fault.Invalid) || !strings.Contains(o.err.Error(), "/bin/none") {
		t.Errorf("an init that is not there: %v", o.err)
	}
	o = b.buildScript(t, onBase+"[export.directories]\ninclude=['/etc']\n", noImage)
	must(t, o.err)
	if len(o.Warnings) != 1 || !strings.Contains(o.Warnings[0], "/bin/sh") {
		t.Errorf("warnings without a shell: %q", o.Warnings)
	}
}

// An image that is not there says which, and the key that names it.
func TestMissingImage(t *testing.T) {
	b := newBench(t)
	o := b.buildScript(t, "[container]\nimage={name='nothing/here', tag='9', pull='never'}\n[export]\nall=true\n", nil)
	if !fault.Is(o.err, fault.NotFound) || !strings.Contains(o.err.Error(), "nothing/here:9") || !strings.Contains(o.err.Error(), "container.image") {
		t.Errorf("error: %v", o.err)
	}
}

// The script of docs/buildfs.md, as printed, on this test's image.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("../../../docs/buildfs.md")
	must(t, err)
	_, script, ok := strings.Cut(string(text), "```toml\n")
	if !ok {
		t.Fatal("docs/buildfs.md has no script")
	}
	script, _, _ = strings.Cut(script, "```")
	o := newBench(t).buildScript(t, script, func(o *Options, c *CheckOptions) {
		c.Set = []string{"container.image=base:1"}
	})
	must(t, o.err)
	if got := debugfs(t, o.output, "cat /etc/greeting"); got != "made by a build script\n" || o.entries["etc/motd"].content != "Hello.\n" {
		t.Errorf("greeting %q, motd %q", got, o.entries["etc/motd"].content)
	}
}
