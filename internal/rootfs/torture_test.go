package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// torture makes a tree of everything that is easily lost, on the host, and an archive of it made by GNU tar.
func torture(t *testing.T, manyFiles int) (dir, archive string) {
	t.Helper()
	needRoot(t)
	top := t.TempDir()
	dir, archive = filepath.Join(top, "tree"), filepath.Join(top, "tree.tar")
	must(t, os.Mkdir(dir, 0o755))
	at := func(name string) string { return filepath.Join(dir, name) }
	put := func(name, content string, mode os.FileMode) {
		must(t, os.MkdirAll(filepath.Dir(at(name)), 0o755))
		must(t, os.WriteFile(at(name), []byte(content), 0o600))
		must(t, unix.Chmod(at(name), uint32(mode)))
	}
	for i, mode := range []os.FileMode{0, 0o777, 0o4755, 0o2755, 0o1644, 0o6711} {
		put(fmt.Sprintf("modes/%d", i), "mode", mode)
	}
	put("owner", "owned", 0o644)
	must(t, os.Chown(at("owner"), 100000, 4_000_000_000))
	put("xattr/many", "x", 0o644)
	must(t, unix.Setxattr(at("xattr/many"), "user.large", bytes.Repeat([]byte("v"), 3000), 0))
	must(t, unix.Setxattr(at("xattr/many"), "trusted.secret", []byte("\x00\xff"), 0))
	must(t, unix.Setxattr(at("xattr/many"), "user.100%=all", []byte("x"), 0))
	put("xattr/able", "x", 0o755)
	tool(t, "sh", "-c", `printf '\001\000\000\002\000\004\000\000\000\000\000\000\000\000\000\000\000\000\000\000' > `+at("xattr/cap"))
	capability, err := os.ReadFile(at("xattr/cap"))
	must(t, err)
	must(t, unix.Setxattr(at("xattr/able"), "security.capability", capability, 0))
	acl, err := binaryACL("user::rwx,user:54321:r--,group::r-x,mask::r-x,other::---")
	must(t, err)
	must(t, os.Mkdir(at("inherits"), 0o750))
	must(t, unix.Setxattr(at("inherits"), xattrDefaultACL, []byte(acl), 0))
	must(t, unix.Setxattr(at("inherits"), xattrACL, []byte(acl), 0))
	must(t, os.WriteFile(at("inherits/child"), []byte("x"), 0o600))
	must(t, unix.Removexattr(at("inherits/child"), xattrACL))
	must(t, unix.Mknod(at("char"), unix.S_IFCHR|0o620, int(unix.Mkdev(5, 1))))
	must(t, unix.Mknod(at("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	must(t, unix.Mknod(at("fifo"), unix.S_IFIFO|0o600, 0))
	for _, n := range []int{1, 59, 60, 3000} {
		must(t, os.Symlink(strings.Repeat("s", n), at(fmt.Sprintf("link%d", n))))
	}
	for _, name := range []string{"xattr/many", "link60"} {
		must(t, os.Link(at(name), at("again-"+filepath.Base(name))))
	}
	for name, size := range map[string]int64{"sparse/300M": 300 << 20, "sparse/5G": 5 << 30} {
		put(name, "begin", 0o644)
		f, err := os.OpenFile(at(name), os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("middle"), size/2+777)
		must(t, err)
		must(t, f.Truncate(size))
		must(t, f.Close())
	}
	put(strings.Repeat("n", 255), "long name", 0o644)
	put("not-utf8-\xff\xfe", "x", 0o644)
	put("new\nline \"quoted\" \\", "x", 0o644)
	put(strings.Repeat("d/", 600)+"deep", "x", 0o644)
	must(t, os.Mkdir(at("crowd"), 0o755))
	for i := range manyFiles {
		must(t, os.WriteFile(at(fmt.Sprintf("crowd/file-number-%d", i)), nil, 0o644))
	}
	for name, at := range map[string]string{"time/1969": "1969-06-01 12:00:00.000000007", "time/2100": "2100-01-01 00:00:00.5"} {
		put(name, "x", 0o644)
		tool(t, "touch", "-d", at, filepath.Join(dir, name))
	}
	tool(t, "touch", "-h", "-d", "2001-02-03 04:05:06.789", at("link1"))
	tool(t, "tar", "-C", dir, "-cf", archive, "--format=pax", "--sparse", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", ".")
	return dir, archive
}

// What GNU tar packs comes out as it went in, whichever way the image is made.
func TestTortureTree(t *testing.T) {
	for name, tt := range map[string]struct {
		unprivileged bool
		crowd        int // mke2fs takes time with the square of it
	}{"mounted": {false, 12_000}, "unprivileged": {true, 1000}} {
		t.Run(name, func(t *testing.T) {
			dir, packed := torture(t, tt.crowd)
			source := describe(t, dir)
			f, err := os.Open(packed)
			must(t, err)
			defer f.Close()
			path := filepath.Join(t.TempDir(), "image")
			began := time.Now()
			result, err := run(t.Context(), &job{archive: f, dir: filepath.Dir(path), options: Options{HeadroomBytes: 16 << 20}, unprivileged: tt.unprivileged}, path)
			must(t, err)
			t.Logf("%v, %+v", time.Since(began), result)
			tool(t, "e2fsck", "-fn", path)
			warned := 0
			if tt.unprivileged { // mke2fs keeps no hard links of symbolic links
				source["link60"] = strings.TrimSuffix(source["link60"], " = again-link60")
				warned = 1
			}
			differ(t, source, look(t, path, "ext4"))
			if len(result.Warnings) != warned || result.Entries != int64(len(source)) || result.UsedBytes > 100<<20 || result.SizeBytes > 200<<20 {
				t.Errorf("%d entries in the tree; %+v", len(source), result)
			}
		})
	}
}

// differ compares two descriptions of trees.
func differ(t *testing.T, want, got map[string]string) {
	t.Helper()
	for name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("%.300q is missing", name)
		} else if got[name] != want[name] {
			t.Errorf("%.300q is %.500q, want %.500q", name, got[name], want[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%.300q should not be there", name)
		}
	}
}

// Holes stay holes, zeroes become some, and content is where it was.
func TestHoles(t *testing.T) {
	needRoot(t)
	zeroes := strings.Repeat("\x00", 1<<20)
	content := "a" + zeroes + zeroes + "b" + zeroes
	path, result := write(t, archive(t, file("zeroes", content), file("only", zeroes), file("short", "\x00\x00")), Options{})
	if result.UsedBytes > 2<<20 {
		t.Errorf("%d bytes are used", result.UsedBytes)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, useMount(t.Context(), f, "ext4", "", func(root int) error {
		for name, want := range map[string]string{"zeroes": content, "only": zeroes, "short": "\x00\x00"} {
			place := fmt.Sprintf("/proc/self/fd/%d/%s", root, name)
			got, err := os.ReadFile(place)
			if err != nil || string(got) != want {
				t.Errorf("%s: %d bytes of %d, or other ones (%v)", name, len(got), len(want), err)
			}
			var st unix.Stat_t
			must(t, unix.Stat(place, &st))
			if st.Blocks*512 > 16<<10 {
				t.Errorf("%s takes %d bytes", name, st.Blocks*512)
			}
		}
		return nil
	}))
}

// The digest is that of the tree: not of the archive's order, compression, or of what was replaced on the way. Each
// property of a file counts.
func TestDigest(t *testing.T) {
	needRoot(t)
	base := func() []entry {
		list := []entry{folder(".", 0o755), link(tar.TypeLink, "hard", "x/0"), link(tar.TypeSymlink, "sym", "x"), node(tar.TypeChar, "c", 1, 2)}
		for i := range 20 {
			list = append(list, folder(fmt.Sprintf("d%d", i), 0o755), file(fmt.Sprintf("x/%d", i), fmt.Sprint("content ", i)))
		}
		return append(list, folder("x", 0o700))
	}
	shuffled := func(seed uint64) []entry {
		list := base()
		rand.New(rand.NewPCG(seed, 1)).Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for i, e := range list { // a hard link follows its target
			if e.Typeflag == tar.TypeLink {
				list = append(append(list[:i:i], list[i+1:]...), e)
				break
			}
		}
		return list
	}
	digest := func(data []byte) string {
		t.Helper()
		_, result := write(t, data, Options{})
		return result.Tree
	}
	first := shuffled(0)
	want := digest(archive(t, first...))
	for seed := range uint64(3) {
		if got := digest(archive(t, shuffled(seed)...)); got != want {
			t.Errorf("order %d gives another digest", seed)
		}
	}
	if got := digest(archive(t, append([]entry{file("x/3", "replaced"), folder("sym", 0o755), file("sym/below", "gone")}, first...)...)); got != want {
		t.Error("what was replaced counts")
	}
	if got := digest(packedBy(t, archive(t, first...), func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })); got != want {
		t.Error("compression by gzip counts")
	}
	if got := digest(packedBy(t, archive(t, first...), func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w)
		must(t, err)
		return z
	})); got != want {
		t.Error("compression by zstd counts")
	}
	seen := map[string]string{want: "nothing"}
	for name, change := range map[string]func(*entry){
		"name": func(e *entry) { e.Name = "x/33" }, "content": func(e *entry) { e.data = "Content 3" }, "mode": func(e *entry) { e.Mode = 0o600 },
		"uid": func(e *entry) { e.Uid = 1 }, "gid": func(e *entry) { e.Gid = 1 }, "time": func(e *entry) { e.ModTime = e.ModTime.Add(1) },
		"xattr": func(e *entry) { e.PAXRecords = map[string]string{paxXattr + "user.a": "b"} },
		"hole":  func(e *entry) { e.data, e.Size = strings.Repeat("\x00", 8192), 8192 },
		"holes": func(e *entry) { e.data, e.Size = strings.Repeat("\x00", 8193), 8193 },
		"type":  func(e *entry) { *e = link(tar.TypeSymlink, e.Name, "content 3") },
	} {
		list := base()
		for i := range list {
			if list[i].Name == "x/3" {
				change(&list[i])
			}
			if list[i].Name == "hard" {
				list[i] = file("hard", "content 0")
			}
		}
		got := digest(archive(t, list...))
		if other, ok := seen[got]; ok {
			t.Errorf("%s and %s give the same digest", name, other)
		}
		seen[got] = name
	}
}

func packedBy(t *testing.T, data []byte, with func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var b bytes.Buffer
	w := with(&b)
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}

// Equal content has an equal UUID, a given one is kept, and there is as much room as was asked for.
func TestSizeAndLabel(t *testing.T) {
	needRoot(t)
	var uuids []string
	for _, headroom := range []int64{0, 8 << 20, 200 << 20} {
		path, result := write(t, archive(t, file("a", strings.Repeat("x", 10<<20))), Options{HeadroomBytes: headroom})
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		must(t, useMount(t.Context(), f, "ext4", "", func(root int) error {
			var st unix.Statfs_t
			must(t, unix.Fstatfs(root, &st))
			if free := int64(st.Bavail) * st.Bsize; free < headroom || result.SizeBytes > 48<<20 && free > headroom*5/4+16<<20 {
				t.Errorf("%d bytes of %d are free, asked for %d", free, result.SizeBytes, headroom)
			}
			return nil
		}))
		must(t, f.Close())
		uuids = append(uuids, strings.TrimSpace(tool(t, "blkid", "-p", "-o", "value", "-s", "UUID", path)))
	}
	if uuids[0] != uuids[1] || uuids[1] != uuids[2] || uuids[0][14] != '8' {
		t.Errorf("UUIDs %v", uuids)
	}
	const own = "11111111-2222-4333-8444-555555555555"
	path, _ := write(t, archive(t), Options{UUID: own, Label: "mine", MkfsArgs: []string{"-N", "1000"}})
	if got := tool(t, "blkid", "-p", "-o", "value", "-s", "UUID", "-s", "LABEL", path); got != own+"\nmine\n" && got != "mine\n"+own+"\n" {
		t.Errorf("got %q", got)
	}
}

func TestBootable(t *testing.T) {
	needRoot(t)
	fixed := " 1735689600.000000000"
	for name, entries := range map[string][]entry{
		"empty":  {},
		"engine": {folder(".", 0o700), folder("etc", 0o755), file(".dockerenv", ""), file("etc/hostname", ""), file("etc/hosts", ""), file("etc/resolv.conf", "", func(h *tar.Header) { h.Mode = 0o755 }), folder("dev", 0o700), node(tar.TypeChar, "dev/null", 1, 3), folder("proc", 0o700)},
		"odd": {file("dev", "a file"), link(tar.TypeSymlink, "run", "var/run"), link(tar.TypeSymlink, "etc/resolv.conf", "/run/stub"), folder("etc/hostname", 0o755), file("etc/hostname/x", ""),
			link(tar.TypeSymlink, "tmp", "proc/none"), link(tar.TypeSymlink, "etc/hosts", "/etc/hosts")},
		"through a link": {folder("dev", 0o700), link(tar.TypeSymlink, "other", "dev"), file("other/x/y", "")},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := write(t, archive(t, entries...), Options{Bootable: true})
			found := look(t, path, "ext4")
			want(t, found, map[string]string{
				"etc/hostname":    "100644 0:0" + fixed + ` "vers\n" 5 bytes`,
				"etc/resolv.conf": "100644 0:0" + fixed + ` "nameserver 10.77.0.1\n" 21 bytes`,
				"etc/hosts":       "100644 0:0" + fixed + fmt.Sprintf(" %q %d bytes", mendedHosts, len(mendedHosts)),
			})
			for name, mode := range map[string]string{".": "040755", "dev": "040755", "proc": "040555", "sys": "040555", "run": "040755", "tmp": "041777"} {
				if !strings.HasPrefix(found[name], mode+" 0:0") {
					t.Errorf("%s is %q, want %s", name, found[name], mode)
				}
			}
			for name := range found {
				if name == ".dockerenv" || strings.HasPrefix(name, "dev/") {
					t.Errorf("%s is still there", name)
				}
			}
		})
	}
	path, _ := write(t, archive(t, file("etc/hosts", "10.0.0.1 mine\n127.0.0.1 localhost\n"), folder("var/tmp", 0o1777), link(tar.TypeSymlink, "tmp", "var/tmp")), Options{Bootable: true})
	found := look(t, path, "ext4")
	want(t, found, map[string]string{"etc/hosts": "100644 0:0" + stamp + ` "10.0.0.1 mine\n127.0.0.1 localhost\n" 34 bytes`, "tmp": "120777 0:0" + stamp + " -> var/tmp"})
}

// An ordinary user without any privilege makes the same image. The test runs itself as user 65534.
func TestUnprivilegedUser(t *testing.T) {
	if dir := os.Getenv("ROOTFS_TEST_AS_NOBODY"); dir != "" {
		f, err := os.Open(filepath.Join(dir, "archive"))
		must(t, err)
		result, err := Write(t.Context(), f, filepath.Join(dir, "image"), Options{Bootable: true})
		must(t, errors.Join(err, f.Close()))
		must(t, os.WriteFile(filepath.Join(dir, "result"), []byte(result.Tree), 0o600))
		return
	}
	needRoot(t)
	data := archive(t, folder("a", 0o700), file("a/suid", "x", func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o4755, 100000, 5 }),
		file("able", "x", func(h *tar.Header) { h.PAXRecords = map[string]string{paxXattr + "user.a": "b"} }),
		node(tar.TypeChar, "zero", 1, 5), node(tar.TypeChar, "dev/null", 1, 3), link(tar.TypeLink, "hard", "zero"))
	path, result := write(t, data, Options{Bootable: true})

	top, err := os.MkdirTemp("/var/tmp", "rootfs-test-")
	must(t, err)
	defer os.RemoveAll(top)
	must(t, os.WriteFile(filepath.Join(top, "archive"), data, 0o644))
	must(t, os.Chown(top, 65534, 65534))
	self, err := os.ReadFile("/proc/self/exe") // the test binary's own folder is closed to others
	must(t, err)
	must(t, os.WriteFile(filepath.Join(top, "test"), self, 0o755))
	cmd := exec.CommandContext(t.Context(), filepath.Join(top, "test"), "-test.run=^(TestUnprivilegedUser|TestTypesWithoutRoot)$", "-test.v")
	cmd.Dir, cmd.Env = top, []string{"ROOTFS_TEST_AS_NOBODY=" + top, "TMPDIR=" + top, "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	made := filepath.Join(top, "image")
	tool(t, "e2fsck", "-fn", made)
	wanted, found := look(t, path, "ext4"), look(t, made, "ext4")
	wanted["hard"] = strings.TrimSuffix(wanted["hard"], " = "+"hard")
	for _, tree := range []map[string]string{wanted, found} { // a device made by debugfs is not linked
		tree["zero"] = strings.TrimSuffix(tree["zero"], " = hard")
	}
	differ(t, wanted, found)
	if digest, err := os.ReadFile(filepath.Join(top, "result")); err != nil || string(digest) != result.Tree {
		t.Errorf("digest %s of a user, %s of root (%v)", digest, result.Tree, err)
	}
	names, err := filepath.Glob(filepath.Join(top, ".new*"))
	if err != nil || len(names) > 0 {
		t.Errorf("left behind: %v (%v)", names, err)
	}
}
