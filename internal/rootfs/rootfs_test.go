package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// entry is one entry of a test's archive.
type entry struct {
	tar.Header
	data string
}

var when = time.Unix(1_600_000_000, 123_456_789)

func file(name, data string, change ...func(*tar.Header)) entry {
	e := entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: when, Size: int64(len(data))}, data}
	for _, f := range change {
		f(&e.Header)
	}
	return e
}

func folder(name string, mode int64) entry {
	return entry{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode, ModTime: when}}
}

func link(kind byte, name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o777, ModTime: when}}
}

func node(kind byte, name string, major, minor int64) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: kind, Mode: 0o640, ModTime: when, Devmajor: major, Devminor: minor}}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Format = tar.FormatPAX
		must(t, w.WriteHeader(&e.Header))
		_, err := w.Write([]byte(e.data))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting an image to look into it needs root")
	}
}

// write makes an image, and looks that nothing else has come to be.
func write(t testing.TB, archive []byte, o Options) (string, Result) {
	t.Helper()
	return writeAs(t, archive, o, false)
}

func writeAs(t testing.TB, archive []byte, o Options, unprivileged bool) (string, Result) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	before := traces(t)
	result, err := run(t.Context(), &job{archive: bytes.NewReader(archive), dir: filepath.Dir(path), options: o, unprivileged: unprivileged}, path)
	must(t, err)
	alone(t, path)
	if diff := cmp.Diff(before, traces(t)); diff != "" {
		t.Errorf("left behind: %s", diff)
	}
	if o.Type == Ext4 || o.Type == "" {
		tool(t, "e2fsck", "-fn", path)
	}
	return path, result
}

// alone looks that there is nothing but one file in its directory.
func alone(t testing.TB, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			t.Errorf("left in the directory of the image: %s", e.Name())
		}
	}
}

// traces counts what a process can leave: open descriptors, mounts, loop devices of this test.
func traces(t testing.TB) map[string]int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	mine := 0
	for _, l := range loops {
		if name, err := os.ReadFile(l); err == nil && strings.Contains(string(name), os.TempDir()+"/Test") {
			mine++
		}
	}
	return map[string]int{"descriptors": len(fds), "mounts": bytes.Count(mounts, []byte("\n")), "loops": mine}
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// look mounts an image and describes all that is in it, by path.
func look(t testing.TB, path, fsType string) map[string]string {
	t.Helper()
	needRoot(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	found := map[string]string{}
	must(t, useMount(t.Context(), f, fsType, "", func(root int) error {
		found = describe(t, "/proc/self/fd/"+strconv.Itoa(root)+"/")
		return nil
	}))
	delete(found, "lost+found")
	return found
}

// describe walks a tree with nothing of this package: type, mode, owner, time, content, link group, devices, attributes.
func describe(t testing.TB, root string) map[string]string {
	t.Helper()
	found, groups := map[string]string{}, map[uint64]string{}
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		text := fmt.Sprintf("%06o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			if st.Size < 1<<20 {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				text += fmt.Sprintf(" %q", data)
			}
			text += fmt.Sprintf(" %d bytes", st.Size)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" %d,%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first, ok := groups[st.Ino]; ok {
				text += " = " + first
			} else {
				groups[st.Ino] = name
			}
		}
		found[name] = text + xattrsOf(t, path)
		return nil
	}))
	return found
}

func xattrsOf(t testing.TB, path string) string {
	t.Helper()
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	must(t, err)
	text := ""
	list := strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00")
	slices.Sort(list)
	for _, name := range list {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		must(t, err)
		text += fmt.Sprintf(" %s=%x", name, value[:n])
	}
	return text
}

// want checks some of what is in an image.
func want(t testing.TB, found, wanted map[string]string) {
	t.Helper()
	for name, text := range wanted {
		if found[name] != text {
			t.Errorf("%s is %q, want %q", name, found[name], text)
		}
	}
}

const stamp = " 1600000000.123456789"

func TestWriteKeeps(t *testing.T) {
	needRoot(t)
	with := func(key, value string) func(*tar.Header) {
		return func(h *tar.Header) { h.PAXRecords = map[string]string{key: value} }
	}
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	data := archive(t,
		folder(".", 0o750), folder("./d", 0o1777),
		file("d/owned", "hello", func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o6755, 100000, 4_000_000_000 }),
		file("d/able", "x", with(paxXattr+"security.capability", capability)),
		file("d/acl", "x", with(paxACL, "user::rw-,user:1000:r--,group::r--,mask::r--,other::r--")),
		file("d/none", "x", func(h *tar.Header) { h.Mode = 0 }),
		link(tar.TypeSymlink, "d/sym", "../etc/passwd"), link(tar.TypeLink, "d/hard", "./d/owned"),
		node(tar.TypeChar, "d/null", 1, 3), node(tar.TypeBlock, "d/disk", 259, 70000), node(tar.TypeFifo, "d/pipe", 0, 0),
		file("d/old", "x", func(h *tar.Header) { h.ModTime = time.Unix(-3600, 500) }),
		file("d/future", "x", func(h *tar.Header) { h.ModTime = time.Unix(4_102_444_800, 1) }),
		file("deep/er/file", "x"), folder("default", 0o755),
		file(strings.Repeat("n", 255), "long"),
	)
	var digests []string
	for _, unprivileged := range []bool{false, true} {
		t.Run(map[bool]string{false: "mounted", true: "unprivileged"}[unprivileged], func(t *testing.T) {
			path, result := writeAs(t, data, Options{SizeBytes: 64 << 20}, unprivileged)
			found := look(t, path, "ext4")
			want(t, found, map[string]string{
				".":                      "040750 0:0" + stamp,
				"d":                      "041777 0:0" + stamp,
				"d/owned":                "106755 100000:4000000000" + stamp + ` "hello" 5 bytes = d/hard`,
				"d/hard":                 "106755 100000:4000000000" + stamp + ` "hello" 5 bytes`,
				"d/able":                 "100644 0:0" + stamp + ` "x" 1 bytes security.capability=` + fmt.Sprintf("%x", capability),
				"d/acl":                  "100644 0:0" + stamp + ` "x" 1 bytes system.posix_acl_access=0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000400ffffffff`,
				"d/none":                 "100000 0:0" + stamp + ` "x" 1 bytes`,
				"d/sym":                  "120777 0:0" + stamp + " -> ../etc/passwd",
				"d/null":                 "020640 0:0" + stamp + " 1,3",
				"d/disk":                 "060640 0:0" + stamp + " 259,70000",
				"d/pipe":                 "010640 0:0" + stamp,
				"d/old":                  `100644 0:0 -3600.000000500 "x" 1 bytes`,
				"d/future":               `100644 0:0 4102444800.000000001 "x" 1 bytes`,
				"deep":                   "040755 0:0 0.000000000",
				"deep/er":                "040755 0:0 0.000000000",
				strings.Repeat("n", 255): "100644 0:0" + stamp + ` "long" 4 bytes`,
			})
			if len(found) != 18 || result.Entries != 18 || result.SizeBytes != 64<<20 || len(result.Tree) != 64 || result.Warnings != nil {
				t.Errorf("%d entries, %+v", len(found), result)
			}
			if result.UsedBytes > 4<<20 {
				t.Errorf("a small tree takes %d bytes", result.UsedBytes)
			}
			digests = append(digests, result.Tree)
		})
	}
	if digests[0] != digests[1] {
		t.Errorf("the digest depends on the way: %v", digests)
	}
}

// Names never lead out of the tree, whatever they and the links before them say; later entries win.
func TestWriteHostileNames(t *testing.T) {
	needRoot(t)
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	data := archive(t,
		file("/absolute", "1"), file("../up", "2"), file("a/../../../b", "3"),
		link(tar.TypeSymlink, "out", "/"), file("out/etc/shadow", "mine"),
		link(tar.TypeSymlink, "up2", "../../../.."), file("up2/tmp/x", "4"),
		link(tar.TypeSymlink, "abs", filepath.Dir(secret)), file("abs/secret", "overwritten"),
		link(tar.TypeLink, "stolen", "/absolute"),
		link(tar.TypeSymlink, "onto", secret), file("onto", "a file now"),
		node(tar.TypeFifo, "pipe", 0, 0), link(tar.TypeLink, "pipe2", "./pipe"), file("twice", "first"), link(tar.TypeLink, "other", "twice"), file("twice", "second"),
		file("was/a/folder/x", "x"), file("was", "a file"),
		file("is", "a file"), folder("is", 0o700), file("is/full", "x"), folder("is", 0o711),
		link(tar.TypeSymlink, "to", "is"), folder("to", 0o755),
		link(tar.TypeSymlink, "loop/x", "x"), link(tar.TypeLink, "twice", "twice"),
	)
	path, _ := write(t, data, Options{})
	found := look(t, path, "ext4")
	plain := "100644 0:0" + stamp
	want(t, found, map[string]string{
		"absolute": plain + ` "1" 1 bytes`, "up": plain + ` "2" 1 bytes`, "b": plain + ` "3" 1 bytes`,
		"etc/shadow": plain + ` "mine" 4 bytes`, "tmp/x": plain + ` "4" 1 bytes`,
		secret[1:]: plain + ` "overwritten" 11 bytes`, "stolen": plain + ` "1" 1 bytes = absolute`,
		"onto": plain + ` "a file now" 10 bytes`, "other": plain + ` "first" 5 bytes`, "twice": plain + ` "second" 6 bytes`,
		"pipe": "010640 0:0" + stamp, "pipe2": "010640 0:0" + stamp + " = pipe",
		"was": plain + ` "a file" 6 bytes`, "is": "040711 0:0" + stamp, "is/full": plain + ` "x" 1 bytes`, "to": "040755 0:0" + stamp,
	})
	if content, err := os.ReadFile(secret); err != nil || string(content) != "secret" {
		t.Fatalf("a file of the host was changed: %q, %v", content, err)
	}
}

func TestWriteRefuses(t *testing.T) {
	var folders string
	for range 2100 {
		folders += "d/"
	}
	for name, tt := range map[string]struct {
		data []byte
		o    Options
		kind fault.Kind
		says string
	}{
		"nothing":             {nil, Options{}, fault.Invalid, "the archive is empty"},
		"no archive":          {bytes.Repeat([]byte("no archive "), 2000), Options{}, fault.Invalid, "no tar archive"},
		"cut off":             {archive(t, file("a", strings.Repeat("x", 5000)))[:3000], Options{}, fault.Invalid, "ends in the middle"},
		"bzip2":               {[]byte("BZh91AY&SY"), Options{}, fault.Invalid, "bzip2"},
		"link without target": {archive(t, link(tar.TypeLink, "a", "gone")), Options{}, fault.Invalid, `entry "a" of the archive is a hard link to "gone"`},
		"link to a folder":    {archive(t, folder("f", 0o755), link(tar.TypeLink, "a", "f")), Options{}, fault.Invalid, "which is a directory"},
		"link to itself":      {archive(t, folder("f", 0o755), file("f/x", ""), link(tar.TypeLink, "f", "f/x")), Options{}, fault.Invalid, "which it replaces"},
		"long name":           {archive(t, file(strings.Repeat("n", 256), "")), Options{}, fault.Invalid, "255 bytes"},
		"long path":           {archive(t, file(folders+"x", "")), Options{}, fault.Invalid, "4095"},
		"below a file":        {archive(t, file("a", ""), file("a/b", "")), Options{}, fault.Invalid, "no directory"},
		"root as a file":      {archive(t, file("..", "x")), Options{}, fault.Invalid, "root directory"},
		"device":              {archive(t, node(tar.TypeChar, "d", 5000, 0)), Options{}, fault.Invalid, "5000:0"},
		"entries":             {archive(t, file("a", ""), file("b", "")), Options{Limits: Limits{Entries: 1}}, fault.Exhausted, "more than 1 entries"},
		"bytes":               {archive(t, file("a", "xx")), Options{Limits: Limits{Bytes: 1}}, fault.Exhausted, "more than 1 bytes"},
		"small":               {archive(t, file("a", strings.Repeat("x", 40<<20))), Options{SizeBytes: 48 << 20}, fault.Exhausted, `full at entry "a"`},
		"too small":           {archive(t), Options{SizeBytes: 1 << 20}, fault.Invalid, "at least 48 MiB"},
		"huge":                {archive(t, folder("f", 0o755)), Options{SizeBytes: -1}, fault.Invalid, "no sense"},
		"mkfs":                {archive(t), Options{MkfsArgs: []string{"-d", "/etc"}}, fault.Invalid, "-d"},
		"mkfs device":         {archive(t), Options{MkfsArgs: []string{"-L", "a", "victim"}}, fault.Invalid, "victim"},
		"uuid":                {archive(t), Options{UUID: "x"}, fault.Invalid, "no UUID"},
		"type":                {archive(t), Options{Type: "ntfs"}, fault.Invalid, "ntfs"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			before := traces(t)
			_, err := Write(t.Context(), bytes.NewReader(tt.data), path, tt.o)
			if !fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v (%v), want %v with %q", err, fault.KindOf(err), tt.kind, tt.says)
			}
			if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) > 0 {
				t.Errorf("left behind: %v (%v)", entries, err)
			}
			if diff := cmp.Diff(before, traces(t)); diff != "" {
				t.Errorf("left behind: %s", diff)
			}
		})
	}
}

// stopping ends a context in the middle of an archive.
type stopping struct {
	r    io.Reader
	left int
	stop context.CancelFunc
}

func (s *stopping) Read(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		s.stop()
	}
	return s.r.Read(p)
}

type failing struct{}

var errBroken = errors.New("the line is cut")

func (failing) Read([]byte) (int, error) { return 0, errBroken }

// A stopped or failed run leaves nothing, and an image that was there is as it was.
func TestWriteStopped(t *testing.T) {
	data := archive(t, file("a", strings.Repeat("x", 8<<20)), file("b", strings.Repeat("y", 8<<20)))
	for _, size := range []int64{0, 64 << 20} {
		path := filepath.Join(t.TempDir(), "image")
		must(t, os.WriteFile(path, []byte("precious"), 0o600))
		before := traces(t)
		ctx, stop := context.WithCancel(t.Context())
		_, err := Write(ctx, &stopping{bytes.NewReader(data), 9 << 20, stop}, path, Options{SizeBytes: size})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("stopped: %v", err)
		}
		_, err = Write(t.Context(), io.MultiReader(bytes.NewReader(data[:9<<20]), failing{}), path, Options{SizeBytes: size})
		if !errors.Is(err, errBroken) || fault.KindOf(err) != fault.Internal {
			t.Errorf("broken: %v", err)
		}
		alone(t, path)
		if diff := cmp.Diff(before, traces(t)); diff != "" {
			t.Errorf("left behind: %s", diff)
		}
		if content, err := os.ReadFile(path); err != nil || string(content) != "precious" {
			t.Errorf("the image that was there is %q (%v)", content, err)
		}
	}
}
