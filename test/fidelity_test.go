package test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestImageFidelity makes an image of a tree that holds everything which is easily lost on the way, boots it and compares
// it in the guest, name by name and property by property, with what it was made of. The archive is written by GNU tar and
// the image is looked at by treelist: neither shares a line with what makes images.
func TestImageFidelity(t *testing.T) {
	u := newUser(t, shared)
	root := guestTree(t, u)
	awkwardTree(t, filepath.Join(root, "tree"))
	source := lines(t, u.run(root+"/bin/treelist -source "+root+"/tree"))
	wellKnown(t, source)

	const pack = "tar --format=pax --sparse --xattrs --xattrs-include='*' --acls --numeric-owner -C "
	u.run(pack + root + " --sort=name -cf tree.tar .")
	t.Cleanup(func() { u.deleteAll(); u.try("vers rootfs delete -f awkward && vers rootfs delete -f again") })
	type made struct {
		ID     string `json:"base_image_id"`
		Digest string `json:"digest"`
	}
	var first, again made
	u.json("vers rootfs import tree.tar --name awkward --format json", &first)
	clean(t, u, first.ID)

	var vm struct {
		VMID string `json:"vm_id"`
	}
	u.json("vers run --rootfs awkward --wait --format json", &vm)
	guest := lines(t, u.run("vers exec "+vm.VMID+" 'treelist /tree'"))
	differ(t, source, guest)

	// The same tree in another order gives the same digest; another time of one name in it another one.
	u.run(pack + root + " --sort=inode -cf tree.tar .")
	u.json("vers rootfs import tree.tar --name again --format json", &again)
	if first.Digest == "" || first.Digest != again.Digest {
		t.Errorf("the digest of a tree is %q, the second time %q", first.Digest, again.Digest)
	}
	must(t, os.Chtimes(filepath.Join(root, "tree/empty"), time.Unix(1, 0), time.Unix(1, 1)))
	u.run(pack + root + " --sort=name -cf tree.tar .")
	u.json("vers rootfs import tree.tar --name again --replace --format json", &again)
	if first.Digest == again.Digest {
		t.Error("the digest does not tell trees apart")
	}
}

// guestTree makes a root file system with a shell and treelist.
func guestTree(t *testing.T, u *user) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("owners, devices and capabilities of a tree need root")
	}
	u.busybox()
	root := t.TempDir()
	u.run("tar -C " + root + " -xzf base.tar.gz && chmod 755 " + root)
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(root, "bin", "treelist"), "./treelist")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build treelist: %v\n%s", err, out)
	}
	return root
}

// clean looks that the file of an image is a file system without faults.
func clean(t *testing.T, u *user, id string) {
	t.Helper()
	u.run("e2fsck -fn " + filepath.Join(u.server.data(), "images", id+".ext4"))
}

// lines are those of a listing, by the name that each is about, in quotes.
func lines(t *testing.T, listing string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(listing) {
		name, err := strconv.QuotedPrefix(line)
		must(t, err)
		found[name] = strings.TrimSpace(line[len(name):])
	}
	return found
}

func differ(t *testing.T, want, got map[string]string) {
	t.Helper()
	for name, text := range want {
		switch {
		case got[name] == "":
			t.Errorf("%.300s is missing in the guest", name)
		case got[name] != text:
			t.Errorf("%.300s in the guest is\n%.900s, want\n%.900s", name, got[name], text)
		}
	}
	for name := range got {
		if want[name] == "" {
			t.Errorf("%.300s should not be in the guest", name)
		}
	}
}

// wellKnown looks that the tree, and the listing of it, has what the test is about.
func wellKnown(t *testing.T, source map[string]string) {
	t.Helper()
	for name, text := range map[string]string{
		"modes/7777": "mode=107777", "modes/4000": "mode=104000", "modes/0": "mode=100000", "folders/3000": "mode=043000",
		"owners/4294967294": "owner=4294967294:65534", "able": "security.capability=0100000200040000", "attributes": "user.empty= user.large=767676",
		"hard/b": "links=4", "hard/deep/c": `same="hard/a"`, "hard/link2": `same="hard/link"`,
		"char": "device=5,1", "block": "device=259,70000", "pipe": "mode=010600", "sparse/5G": "size=5368709120 data=0-1,655360-655361 ",
		"sparse/zeroes": "data= ", "sparse/many": "data=1-2,3-4,5-6,", "not-utf8-\xff\xfe": "sha256=", "new\nline \"quoted\" \\": "sha256=",
		"times/1901": "time=-2147483648.000000000", "times/1969": "time=-1.000000001", "times/2446": "time=15032385534.999999999",
		"empty": "links=2", "links/4095": "size=4095", strings.Repeat("n", 255): "size=9", "inherits": "system.posix_acl_default=",
	} {
		if !strings.Contains(source[strconv.Quote(name)], text) {
			t.Errorf("%q of the tree is %q: it should have %q", name, source[strconv.Quote(name)], text)
		}
	}
	longest := slices.MaxFunc(slices.Collect(maps.Keys(source)), func(a, b string) int { return len(a) - len(b) })
	if len(longest) < 3900 {
		t.Errorf("the longest path has %d bytes", len(longest))
	}
}

// awkwardTree makes the tree.
func awkwardTree(t *testing.T, dir string) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	at := func(name string) string { return filepath.Join(dir, name) }
	put := func(name string, content []byte, mode uint32) {
		must(t, os.MkdirAll(filepath.Dir(at(name)), 0o755))
		must(t, os.WriteFile(at(name), content, 0o600))
		must(t, unix.Chmod(at(name), mode))
	}
	awkwardModes(t, dir, put)
	for _, name := range []string{strings.Repeat("n", 255), "not-utf8-\xff\xfe", "new\nline \"quoted\" \\", " ", "-rf", "*", "ünïcödé"} {
		put(name, []byte("long name"), 0o644)
	}
	put(strings.Repeat("d/", 400)+"deep", []byte("x"), 0o644)
	put(strings.Repeat(strings.Repeat("e", 255)+"/", 15)+strings.Repeat("f", 100), []byte("x"), 0o644)
	must(t, os.MkdirAll(at("empty/of all"), 0o700))
	must(t, os.Remove(at("empty/of all")))

	must(t, os.MkdirAll(at("hard/deep"), 0o755))
	put("hard/a", bytes.Repeat([]byte("hard"), 3000), 0o4711)
	must(t, os.Symlink("nowhere", at("hard/link")))
	for _, pair := range [][2]string{{"hard/a", "hard/b"}, {"hard/a", "hard/deep/c"}, {"hard/a", "zzz"}, {"hard/link", "hard/link2"}} {
		must(t, unix.Linkat(unix.AT_FDCWD, at(pair[0]), unix.AT_FDCWD, at(pair[1]), 0))
	}
	for n := range map[int]bool{1: true, 59: true, 60: true, 255: true, 4095: true} {
		must(t, os.MkdirAll(at("links"), 0o755))
		must(t, os.Symlink(strings.Repeat("s", n), at(fmt.Sprint("links/", n))))
	}
	must(t, unix.Mknod(at("char"), unix.S_IFCHR|0o620, int(unix.Mkdev(5, 1))))
	must(t, unix.Mknod(at("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	must(t, unix.Mknod(at("pipe"), unix.S_IFIFO|0o600, 0))
	awkwardFiles(t, dir, put)
	awkwardAttributes(t, dir, put)
	awkwardTimes(t, dir, put)
}

func awkwardModes(t *testing.T, dir string, put func(string, []byte, uint32)) {
	t.Helper()
	modes := []uint32{0, 0o7777, 0o6755, 0o3000}
	for bit := uint32(1); bit <= 0o4000; bit <<= 1 {
		modes = append(modes, bit, 0o644|bit)
	}
	must(t, os.Mkdir(filepath.Join(dir, "folders"), 0o755))
	slices.Sort(modes)
	for _, mode := range slices.Compact(modes) {
		put(fmt.Sprintf("modes/%o", mode), []byte("mode"), mode)
		folder := filepath.Join(dir, fmt.Sprintf("folders/%o", mode))
		must(t, os.Mkdir(folder, 0o700))
		must(t, unix.Chmod(folder, mode))
	}
	for i, uid := range []int{1, 1000, 65534, 65536, 100000, 1 << 31, 4294967294} {
		name := fmt.Sprint("owners/", uid)
		put(name, nil, 0o640)
		must(t, os.Chown(filepath.Join(dir, name), uid, []int{0, 5, 4294967294, 65535, 70000, 7, 65534}[i]))
		must(t, unix.Chmod(filepath.Join(dir, name), 0o6750)) // which chown takes away
	}
}

// awkwardFiles are those with holes, and those of sizes beside a block's.
func awkwardFiles(t *testing.T, dir string, put func(string, []byte, uint32)) {
	t.Helper()
	for _, size := range []int{0, 1, 511, 512, 4095, 4096, 4097, 1<<20 + 1} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(i*7 + i>>8)
		}
		put(fmt.Sprint("sizes/", size), content, 0o644)
	}
	put("sparse/zeroes", make([]byte, 3<<20), 0o644)
	for name, size := range map[string]int64{"hole": 1, "300M": 300 << 20, "5G": 5 << 30, "many": 8 << 20} {
		put("sparse/"+name, nil, 0o644)
		f, err := os.OpenFile(filepath.Join(dir, "sparse", name), os.O_RDWR, 0)
		must(t, err)
		var write []int64
		switch name {
		case "300M":
			write = []int64{size - 6}
		case "5G":
			write = []int64{0, size/2 + 777}
		case "many":
			for at := int64(4096); at < size; at += 8192 {
				write = append(write, at+5)
			}
		}
		for _, at := range write {
			_, err := f.WriteAt([]byte("island"), at)
			must(t, err)
		}
		must(t, f.Truncate(size))
		must(t, f.Close())
	}
}

func awkwardAttributes(t *testing.T, dir string, put func(string, []byte, uint32)) {
	t.Helper()
	set := func(name, key string, value []byte) {
		must(t, unix.Lsetxattr(filepath.Join(dir, name), key, value, 0))
	}
	put("able", []byte("x"), 0o755)
	capability := binary.LittleEndian.AppendUint32(nil, 0x02000001) // version 2, effective
	set("able", "security.capability", append(capability, "\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...))
	put("attributes", []byte("x"), 0o644)
	set("attributes", "user.large", bytes.Repeat([]byte("v"), 3000))
	set("attributes", "user.empty", nil)
	set("attributes", "user.bin\xffary=", []byte("\x00\xff\n="))
	set("attributes", "trusted.secret", []byte("\x00\x01"))
	must(t, os.Symlink("x", filepath.Join(dir, "attributed-link")))
	set("attributed-link", "trusted.of-link", []byte("x"))
	must(t, os.Mkdir(filepath.Join(dir, "inherits"), 0o750))
	set("inherits", "user.folder", []byte("x"))
	// Version 2; owner rwx, user 54321 r, group r-x, mask r-x, others none.
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0x31, 0xd4, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255,
		0x10, 0, 5, 0, 255, 255, 255, 255, 0x20, 0, 0, 0, 255, 255, 255, 255}
	set("inherits", "system.posix_acl_access", acl)
	put("inherits/plain", []byte("x"), 0o644) // before the default, which it does not inherit
	set("inherits", "system.posix_acl_default", acl)
}

// awkwardTimes come last: they are the folders' too.
func awkwardTimes(t *testing.T, dir string, put func(string, []byte, uint32)) {
	t.Helper()
	for name, when := range map[string]unix.Timespec{
		"1901": {Sec: -1 << 31}, "1969": {Sec: -1, Nsec: 1}, "1970": {}, "2038": {Sec: 1 << 31, Nsec: 5}, "2446": {Sec: 15032385534, Nsec: 999999999},
	} {
		put("times/"+name, nil, 0o644)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "times", name), []unix.Timespec{when, when}, 0))
		folder := filepath.Join(dir, "times", "in-"+name)
		must(t, os.Mkdir(folder, 0o755))
		must(t, os.WriteFile(filepath.Join(folder, "file"), nil, 0o600))
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, folder, []unix.Timespec{when, when}, 0))
	}
	when := unix.Timespec{Sec: 981173106, Nsec: 789000001}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "links", "1"), []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW))
}

// crowdFolders and crowdFiles are the size of the tree of TestImageOfManyFiles.
const crowdFolders, crowdFiles = 300, 1000

// TestImageOfManyFiles compares 300,000 files in the guest, each by what its inode says, as digests of its folders.
func TestImageOfManyFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("300,000 files take a minute")
	}
	u := newUser(t, shared)
	root := guestTree(t, u)
	u.run("tar --format=pax --numeric-owner -C " + root + " -cf base.tar .")
	base, err := os.ReadFile(filepath.Join(u.dir, "base.tar"))
	must(t, err)
	archive, err := os.Create(filepath.Join(u.dir, "crowd.tar"))
	must(t, err)
	base = bytes.TrimRight(base, "\x00") // its end mark
	_, err = archive.Write(base)
	must(t, err)
	want := crowd(t, archive, len(base))
	must(t, archive.Close())

	t.Cleanup(func() { u.deleteAll(); u.try("vers rootfs delete -f crowd") })
	var image struct {
		ID string `json:"base_image_id"`
	}
	began := time.Now()
	u.json("vers rootfs import crowd.tar --name crowd --format json", &image)
	t.Logf("imported in %v", time.Since(began))
	clean(t, u, image.ID)
	var vm struct {
		VMID string `json:"vm_id"`
	}
	began = time.Now()
	// Memory for the inodes of all files, and whatever processors there are: looking at an inode takes an emulated guest 0.2 ms.
	u.json("vers run --rootfs crowd --mem-size 1024 --vcpu-count 2 --wait --format json", &vm)
	t.Logf("booted in %v", time.Since(began))
	began = time.Now()
	guest := u.run("vers exec " + vm.VMID + " 'treelist -digest /crowd'")
	t.Logf("compared in %v", time.Since(began))
	differ(t, want, lines(t, guest))
}

// crowd goes on with an archive that has at bytes, and gives what treelist -digest says of each of its folders.
func crowd(t *testing.T, w io.Writer, at int) map[string]string {
	t.Helper()
	_, err := w.Write(make([]byte, (512-at%512)%512))
	must(t, err)
	archive, want := tar.NewWriter(w), map[string]string{}
	content := bytes.Repeat([]byte("x"), 5000)
	for d := range crowdFolders {
		sum, folder := sha256.New(), fmt.Sprintf("folder-%d", d)
		for f := range crowdFiles {
			i := d*crowdFiles + f
			size := 0
			if f%100 == 0 {
				size = 1 + i%len(content)
			}
			h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("crowd/%s/%04d", folder, f), Mode: int64(i % 0o10000), Uid: i, Gid: i / 3, Size: int64(size),
				ModTime: time.Unix(int64(i)*3571, 0), Format: tar.FormatUSTAR}
			must(t, archive.WriteHeader(&h))
			_, err := archive.Write(content[:size])
			must(t, err)
			fmt.Fprintf(sum, "%04d\x00%d %d %d %d 0 1 %d %d ", f, unix.S_IFREG|h.Mode, h.Uid, h.Gid, h.ModTime.Unix(), size, (size+4095)/4096*8)
		}
		want[strconv.Quote(folder)] = fmt.Sprintf("%d %x", crowdFiles, sum.Sum(nil))
	}
	must(t, archive.Close())
	return want
}
