package buildfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded"
	"vers/internal/build/engine/enginetest"
	"vers/internal/fault"
)

// bench is an engine with the image base:1, a shell with its tools, plus files that are hard to keep.
type bench struct {
	engine.Engine

	mu       sync.Mutex
	commands []string
	sessions int
}

var shared struct {
	sync.Once
	dir, program string
	err          error
}

func TestMain(m *testing.M) {
	enginetest.Main()
	code := m.Run()
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

// newBench opens the embedded engine; the program and its store are made once.
func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the embedded engine needs root")
	}
	shared.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("/var/tmp", "vers-test."); shared.err != nil {
			return
		}
		shared.program = filepath.Join(shared.dir, "vers-builder")
		out, err := exec.Command("make", "--no-print-directory", "-C", "../../..", "builder", "BUILDER="+shared.program).CombinedOutput()
		if err != nil {
			shared.err = errors.New(string(out))
		}
	})
	must(t, shared.err)
	e, err := embedded.New(embedded.Options{Dir: filepath.Join(shared.dir, "engine"), Store: "test", Program: shared.program})
	must(t, err)
	if _, err := e.Resolve(t.Context(), engine.Reference{Name: "base:1", Pull: engine.PullNever}); err != nil {
		_, err = e.Load(t.Context(), "base:1", bytes.NewReader(base(t)), engine.Config{})
		must(t, err)
	}
	t.Cleanup(func() {
		runs, _ := filepath.Glob(filepath.Join(shared.dir, "engine", "run", "*"))
		if len(runs) > 0 {
			t.Errorf("the build leaves %v (B13)", runs)
		}
	})
	return &bench{Engine: e}
}

// base is enginetest's tree with owners, set-uid, capabilities, hard links and links of folders.
func base(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	in := tar.NewReader(bytes.NewReader(enginetest.Base(t)))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		must(t, w.WriteHeader(h))
		_, err = io.Copy(w, in)
		must(t, err)
	}
	at := time.Unix(1700000000, 123456789)
	add := func(h tar.Header, content string) {
		h.ModTime, h.Format, h.Size = at, tar.FormatPAX, int64(len(content))
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, content)
		must(t, err)
	}
	for _, folder := range []string{"opt/", "usr/", "usr/lib/", "usr/lib/deep/"} {
		add(tar.Header{Name: folder, Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	add(tar.Header{Name: "usr/lib/deep/er/", Typeflag: tar.TypeDir, Mode: 0o751, Uid: 7, Gid: 8}, "")
	add(tar.Header{Name: "usr/lib/deep/er/file", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1000, Gid: 50}, "setuid")
	add(tar.Header{Name: "usr/lib/deep/er/hard", Typeflag: tar.TypeLink, Mode: 0o4755, Uid: 1000, Gid: 50, Linkname: "usr/lib/deep/er/file"}, "")
	add(tar.Header{Name: "opt/hard", Typeflag: tar.TypeLink, Mode: 0o4755, Uid: 1000, Gid: 50, Linkname: "usr/lib/deep/er/file"}, "")
	add(tar.Header{Name: "opt/hard2", Typeflag: tar.TypeLink, Mode: 0o4755, Uid: 1000, Gid: 50, Linkname: "usr/lib/deep/er/file"}, "")
	add(tar.Header{Name: "usr/lib/capable", Typeflag: tar.TypeReg, Mode: 0o755,
		PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}, "x")
	add(tar.Header{Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib"}, "")
	add(tar.Header{Name: "etc/mtab", Typeflag: tar.TypeSymlink, Linkname: "/proc/mounts"}, "") // engines make one where there is none
	add(tar.Header{Name: "etc/motd", Typeflag: tar.TypeReg, Mode: 0o644}, "the image's\n")
	must(t, w.Close())
	return b.Bytes()
}

// Start counts, and lists commands.
func (b *bench) Start(ctx context.Context, c engine.Container) (engine.Session, error) {
	b.mu.Lock()
	b.sessions++
	b.mu.Unlock()
	s, err := b.Engine.Start(ctx, c)
	if err != nil {
		return nil, err
	}
	return &watched{s, b}, nil
}

type watched struct {
	engine.Session
	b *bench
}

func (w *watched) Exec(ctx context.Context, c engine.Command) (int, error) {
	w.b.mu.Lock()
	w.b.commands = append(w.b.commands, strings.Join(c.Args, " "))
	w.b.mu.Unlock()
	return w.Session.Exec(ctx, c)
}

// header of scripts in these tests.
const onBase = "[container]\nimage = { name = 'base', tag = '1', pull = 'never' }\nengine = 'embedded'\n"

// outcome of a build in a test.
type outcome struct {
	*Result
	err     error
	entries map[string]entry
	output  string
	log     string
	left    []string // beside the output
}

type entry struct {
	tar.Header
	content string
}

// build builds a package, and reads what it would write.
func (b *bench) build(t *testing.T, path string, change func(*Options, *CheckOptions)) outcome {
	t.Helper()
	var o outcome
	dir := t.TempDir()
	o.output = filepath.Join(dir, "out.ext4")
	var log bytes.Buffer
	var c CheckOptions
	options := Options{Engine: b, Output: o.output, Log: &log, Note: t.Logf}
	options.Publish = func(_ context.Context, write func(io.Writer) error, _ *Result) error {
		var archive bytes.Buffer
		if err := write(&archive); err != nil {
			return err
		}
		o.entries = readEntries(t, archive.Bytes())
		return nil
	}
	if change != nil {
		change(&options, &c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	p := open(t, path)
	script, report, err := p.Check(c)
	must(t, err)
	must(t, report.Err())
	o.Result, o.err = Build(ctx, p, script, options)
	o.log = log.String()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		o.left = append(o.left, e.Name())
	}
	return o
}

func (b *bench) buildScript(t *testing.T, script string, change func(*Options, *CheckOptions)) outcome {
	t.Helper()
	return b.build(t, writeFiles(t, map[string]string{ScriptName: script}), change)
}

func readEntries(t *testing.T, archive []byte) map[string]entry {
	t.Helper()
	entries := map[string]entry{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		must(t, err)
		content, err := io.ReadAll(r)
		must(t, err)
		entries[strings.TrimSuffix(h.Name, "/")] = entry{*h, string(content)}
	}
}

func names(entries map[string]entry) string {
	var all []string
	for name := range entries {
		all = append(all, name)
	}
	return strings.Join(sorted(all), " ")
}

// noImage leaves out the file system, where only its content matters.
func noImage(o *Options, _ *CheckOptions) { o.Output = "" }

// T2: a command that fails ends the build, its code is said, and nothing stays.
func TestT2FailingCommand(t *testing.T) {
	b := newBench(t)
	o := b.buildScript(t, onBase+`
[[commands]]
command = "echo one"
[[commands]]
name = "second"
command = "echo two; exit 3"
[[commands]]
command = "echo three"
[export]
all = true
`, nil)
	var step *StepFailure
	if !errors.As(o.err, &step) || step.Code != 3 || step.Number != 2 || !strings.Contains(o.err.Error(), "command 2 of 3 (second) failed: exit code 3") {
		t.Errorf("error: %v", o.err)
	}
	if len(step.Tail) != 1 || step.Tail[0] != "two" || !strings.Contains(o.log, "    one\n    two\n") || strings.Contains(o.log, "three") {
		t.Errorf("output: %q, log %q", step.Tail, o.log)
	}
	if len(o.left) > 0 || len(o.Steps) != 2 || o.Steps[1].ExitCode != 3 {
		t.Errorf("it leaves %v, steps %+v", o.left, o.Steps)
	}
	// What is there already stays.
	mine := filepath.Join(t.TempDir(), "mine.ext4")
	must(t, os.WriteFile(mine, []byte("mine"), 0o644))
	o = b.buildScript(t, onBase+"[[commands]]\ncommand='false'\n[export]\nall=true\n", func(o *Options, _ *CheckOptions) { o.Output = mine })
	if data, _ := os.ReadFile(mine); o.err == nil || string(data) != "mine" {
		t.Errorf("the output before is now %q, error %v", data, o.err)
	}
	o = b.buildScript(t, onBase+"[[commands]]\ncommand='exit 4'\nallow_failure=true\n[export]\nall=true\n", noImage)
	if o.err != nil || o.Steps[0].ExitCode != 4 {
		t.Errorf("a failure that is allowed: %v, %+v", o.err, o.Steps)
	}
}

// T3: the same package in each form gives the same content.
func TestT3SameContentOfAllKinds(t *testing.T) {
	b := newBench(t)
	dir := writeFiles(t, map[string]string{ScriptName: onBase + `
[[commands]]
script_path = "scripts/a.sh"
[[overlays]]
source = "/tree"
destination = "/opt/tree"
[export]
all = true
[filesystem]
size_mib = 64
`, "scripts/a.sh*": "#!/bin/sh\necho made > /etc/made\n", "tree/a/b": "b", "tree/run*": "#!/bin/sh\n"})
	must(t, os.Chtimes(filepath.Join(dir, "tree/run"), time.Now(), time.Unix(5, 0)))
	out := t.TempDir()
	paths := []string{dir}
	for _, name := range []string{"p.tar", "p.tar.gz", "renamed.tar.gz"} {
		path := filepath.Join(out, name)
		_, err := Pack(t.Context(), dir, path, KindOfDestination(name), false, CheckOptions{})
		must(t, err)
		paths = append(paths, path)
	}
	must(t, os.Rename(paths[3], filepath.Join(out, "renamed")))
	paths[3] = filepath.Join(out, "renamed")
	first := ""
	for _, path := range paths {
		o := b.build(t, path, nil)
		must(t, o.err)
		if first == "" {
			first = o.Tree
		}
		if o.Tree == "" || o.Tree != first || len(o.SHA256) != 64 {
			t.Errorf("%s has content %s, want %s", path, o.Tree, first)
		}
		if e := o.entries["opt/tree/a/b"]; e.content != "b" || o.entries["opt/tree/run"].Mode&0o111 == 0 {
			t.Errorf("%s: overlay %+v (T4)", path, e)
		}
		if !o.entries["etc/made"].ModTime.Equal(packTime) {
			t.Errorf("a file made by a command has the time %v", o.entries["etc/made"].ModTime)
		}
	}
	o := b.build(t, dir, func(o *Options, _ *CheckOptions) { o.SourceDate, o.Output = "1600000000", "" })
	must(t, o.err)
	if got := o.entries["etc/made"].ModTime.Unix(); got != 1600000000 {
		t.Errorf("with SOURCE_DATE_EPOCH the time is %d", got)
	}
}

// T6: what the image has arrives, also hard links to files that stay out.
func TestT6Fidelity(t *testing.T) {
	b := newBench(t)
	o := b.buildScript(t, onBase+"[export]\nall = true\n", noImage)
	must(t, o.err)
	hard := []string{"opt/hard", "opt/hard2", "usr/lib/deep/er/file", "usr/lib/deep/er/hard"}
	var file entry
	links := 0
	for _, name := range hard {
		if e := o.entries[name]; e.Typeflag == tar.TypeReg {
			file = e
		} else if e.Typeflag == tar.TypeLink && slices.Contains(hard, e.Linkname) {
			links++
		}
	}
	if links != 3 {
		t.Errorf("%d hard links, want 3", links)
	}
	if file.Mode&0o7777 != 0o4755 || file.Uid != 1000 || file.Gid != 50 || file.content != "setuid" {
		t.Errorf("set-uid file: %+v", file)
	}
	if e := o.entries["usr/lib/capable"]; !strings.HasPrefix(e.PAXRecords["SCHILY.xattr.security.capability"], "\x01\x00\x00\x02\x00\x04") {
		t.Errorf("capability: %+v", e)
	}
	if e := o.entries["usr/lib/deep/er"]; e.Mode&0o7777 != 0o751 || e.Uid != 7 {
		t.Errorf("folder: %+v", e)
	}
	for folder, both := range map[string][2]string{"/opt": {"opt/hard", "opt/hard2"}, "/usr/lib/deep": {"usr/lib/deep/er/file", "usr/lib/deep/er/hard"}} {
		o = b.buildScript(t, onBase+"[export.directories]\ninclude = ['"+folder+"']\n", noImage)
		must(t, o.err)
		if e := o.entries[both[0]]; e.Typeflag != tar.TypeReg || e.content != "setuid" || e.Mode&0o7777 != 0o4755 {
			t.Errorf("a hard link whose file stays out: %+v", e)
		}
		if e := o.entries[both[1]]; e.Typeflag != tar.TypeLink || e.Linkname != both[0] {
			t.Errorf("another one: %+v", e)
		}
	}
}

// T7, B6, B7: overlays win, mounted ones are there for the commands too.
func TestT7Overlays(t *testing.T) {
	b := newBench(t)
	o := b.build(t, writeFiles(t, map[string]string{ScriptName: onBase + `
[[commands]]
command = "cat /etc/mounted /opt/files/x > /etc/seen; echo changed > /etc/mounted"
[[overlays]]
source_inline = "overlaid\n"
destination = "/etc/motd"
mode = "0600"
uid = 5
gid = 6
[[overlays]]
source_inline = "mounted\n"
destination = "/etc/mounted"
mounted = true
[[overlays]]
source = "files"
destination = "/opt/files"
mounted = true
[[overlays]]
source_inline = "nameserver 8.8.8.8\n"
destination = "/etc/resolv.conf"
[[overlays]]
source_inline = "new\n"
destination = "/etc/passwd"
if_exists = "skip"
[export.directories]
include = ["/etc"]
`, "files/x": "x\n"}), func(o *Options, _ *CheckOptions) {})
	must(t, o.err)
	for name, want := range map[string]string{"etc/motd": "overlaid\n", "etc/mounted": "mounted\n", "etc/seen": "mounted\nx\n", "opt/files/x": "x\n", "etc/resolv.conf": "nameserver 8.8.8.8\n"} {
		if got := o.entries[name].content; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if e := o.entries["etc/motd"]; e.Mode&0o7777 != 0o600 || e.Uid != 5 || e.Gid != 6 {
		t.Errorf("owner and mode: %+v", e)
	}
	if e := o.entries["etc/passwd"]; !strings.HasPrefix(e.content, "root:") {
		t.Errorf("skip replaces: %q", e.content)
	}
	// In the file, too, where preparing for VMs writes such files itself.
	for name, want := range map[string]string{"/etc/resolv.conf": "nameserver 8.8.8.8\n", "/etc/motd": "overlaid\n"} {
		if got := debugfs(t, o.output, "cat "+name); got != want {
			t.Errorf("%s in the file is %q", name, got)
		}
	}
	o = b.buildScript(t, onBase+"[[overlays]]\nsource_inline=''\ndestination='/etc/motd'\nif_exists='error'\n[export]\nall=true\n", noImage)
	if !fault.Is(o.err, fault.Conflict) || !strings.Contains(o.err.Error(), "/etc/motd") {
		t.Errorf("if_exists = error: %v", o.err)
	}
}

func debugfs(t *testing.T, image, request string) string {
	t.Helper()
	out, err := exec.Command("/usr/sbin/debugfs", "-R", request, image).Output()
	if err != nil {
		t.Fatalf("debugfs %s: %v", request, err)
	}
	return string(out)
}
