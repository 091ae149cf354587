package ext4

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// features are those of our images (internal/image).
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super," +
	"large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// build makes a file system from what script does in an empty directory.
func build(t testing.TB, script string) string {
	t.Helper()
	tree, path := t.TempDir(), filepath.Join(t.TempDir(), "fs.ext4")
	tool(t, "sh", "-ec", "cd "+tree+"\n"+script)
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, 64<<20))
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-O", features, "-b", "4096", "-I", "256", "-N", "8192", "-J", "size=4",
		"-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0", "-d", tree, path)
	return path
}

func openFS(t testing.TB, path string) *FS {
	t.Helper()
	fs, err := tryOpen(t, path)
	must(t, err)
	return fs
}

func tryOpen(t testing.TB, path string) (*FS, error) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	must(t, err)
	return Open(f, st.Size())
}

// show writes an entry as one line.
func show(e Entry) string {
	node := func(n *Node) string {
		if n == nil {
			return "-"
		}
		return fmt.Sprintf("%s %o %d:%d %d%s%s", n.Kind, n.Mode, n.UID, n.GID, n.Size, n.Target, n.Device)
	}
	return fmt.Sprintf("%s %s %s | %s | %s", e.Change, e.Path, strings.Join(e.What, ","), node(e.From), node(e.To))
}

func diff(t testing.TB, from, to *FS, o Options) ([]string, Totals) {
	t.Helper()
	lines := []string{}
	totals, err := Diff(t.Context(), from, to, o, func(e Entry) error {
		lines = append(lines, show(e))
		return nil
	})
	must(t, err)
	return lines, totals
}

const everything = `
mkdir -p etc deep/$(printf 'd%.0s/' $(seq 60)) many empty
seq 5000 > etc/numbers
echo host > etc/hostname
i=0; while [ $i -lt 5000 ]; do : > many/file-with-a-rather-long-name-$i; i=$((i+1)); done
echo leaf > deep/$(printf 'd/%.0s' $(seq 60))leaf
ln -s hostname etc/fast
ln -s /$(printf 'x%.0s' $(seq 300)) etc/slow
ln etc/numbers etc/hard
dd if=/dev/zero of=sparse bs=1 count=1 seek=30M status=none; echo middle | dd of=sparse bs=1 seek=9M conv=notrunc status=none
name=$(printf 'n%.0s' $(seq 255)); echo long > $name
mkfifo fifo; mknod null c 1 3; mknod big b 300 70000
chmod 4755 etc/hostname; chown 70000:5 etc/numbers
setfattr -n user.note -v hello etc/hostname 2>/dev/null || true
printf 'odd\n' > "$(printf 'new\nline\377')"
`

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("device nodes, owners and mounts need root")
	}
}

// Everything that ext4 can hold is read as it was written: a file system against an empty one.
func TestReadEverything(t *testing.T) {
	needsRoot(t)
	empty, full := openFS(t, build(t, "true")), openFS(t, build(t, everything))
	lines, totals := diff(t, empty, full, Options{})
	if totals.Added != int64(len(lines)) || totals.Changed+totals.Removed != 0 || totals.Added < 5000+60+15 {
		t.Errorf("%+v", totals)
	}
	all := strings.Join(lines, "\n") + "\n"
	for _, want := range []string{
		"added /etc/hostname  | - | file 4755 0:0 5\n", "added /etc/hard  | - | file 644 70000:5 23893\n",
		"added /etc/fast  | - | symlink 777 0:0 8hostname\n", "added /etc/slow  | - | symlink 777 0:0 301/xxx",
		"added /sparse  | - | file 644 0:0 31457281\n", "added /fifo  | - | fifo 644 0:0 0\n",
		"added /null  | - | character device 644 0:0 01:3\n", "added /big  | - | block device 644 0:0 0300:70000\n",
		"added /many/file-with-a-rather-long-name-4999  |", "added /" + strings.Repeat("n", 255) + " ",
		"added /deep/" + strings.Repeat("d/", 60) + "leaf ", "added /new\nline\xff  |",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if _, back := diff(t, full, empty, Options{}); back.Removed != totals.Added || back.BytesRemoved != totals.BytesAdded {
		t.Errorf("the other way round: %+v, %+v", back, totals)
	}
}

// Two file systems made of the same tree, with other inode numbers and times, differ in exactly what was changed.
func TestDiffOfTrees(t *testing.T) {
	needsRoot(t)
	from := build(t, everything)
	same := build(t, "echo moves all inodes > zzz; rm zzz; mkdir first; "+everything+"rmdir first")
	lines, totals := diff(t, openFS(t, from), openFS(t, same), Options{})
	if len(lines) > 0 || totals != (Totals{}) {
		t.Errorf("equal trees: %v %+v", lines, totals)
	}
	to := openFS(t, build(t, everything+`
echo other > etc/hostname; echo 5001 >> etc/numbers; chmod 4755 etc/hostname
printf x | dd of=sparse bs=1 seek=20M conv=notrunc status=none
ln -sf hostnam3 etc/fast; rm etc/slow fifo; mkdir fifo; echo in > fifo/in
chmod 700 empty; chown 1:2 null; rm many/file-with-a-rather-long-name-77; echo new > many/new
rm big; mknod big b 300 70001; touch -d 2001-01-01 deep
`))
	lines, totals = diff(t, openFS(t, from), to, Options{})
	want := []string{
		"changed /big device | block device 644 0:0 0300:70000 | block device 644 0:0 0300:70001",
		"changed /empty mode | directory 755 0:0 0 | directory 700 0:0 0",
		"changed /etc/fast target | symlink 777 0:0 8hostname | symlink 777 0:0 8hostnam3",
		"changed /etc/hard content | file 644 70000:5 23893 | file 644 70000:5 23898",
		"changed /etc/hostname content | file 4755 0:0 5 | file 4755 0:0 6",
		"changed /etc/numbers content | file 644 70000:5 23893 | file 644 70000:5 23898",
		"removed /etc/slow  | symlink 777 0:0 301/" + strings.Repeat("x", 300) + " | -",
		"changed /fifo type,mode | fifo 644 0:0 0 | directory 755 0:0 0",
		"added /fifo/in  | - | file 644 0:0 3",
		"removed /many/file-with-a-rather-long-name-77  | file 644 0:0 0 | -",
		"added /many/new  | - | file 644 0:0 4",
		"changed /null owner | character device 644 0:0 01:3 | character device 644 1:2 01:3",
		"changed /sparse content | file 644 0:0 31457281 | file 644 0:0 31457281",
	}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
	if totals != (Totals{Added: 2, Removed: 2, Changed: 9, BytesAdded: 5 + 5 + 1 + 3 + 4}) {
		t.Errorf("%+v", totals)
	}
	lines, _ = diff(t, openFS(t, from), to, Options{Below: "/etc/"})
	if d := cmp.Diff(want[2:7], lines); d != "" {
		t.Error(d)
	}
}

// A file system mounted by the kernel and copied while it is in use has its latest changes in the journal only.
func TestJournal(t *testing.T) {
	needsRoot(t)
	from := build(t, everything)
	live := filepath.Join(t.TempDir(), "live.ext4")
	tool(t, "cp", "--sparse=always", from, live)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop,noatime", live, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop device here: %s", out)
	}
	defer tool(t, "umount", dir)
	tool(t, "sh", "-ec", "cd "+dir+`
for i in 1 2 3; do echo $i > etc/new$i; sync; done
rm etc/new1; rm -r many; sync; mkdir again; seq 3000 > again/numbers; mv etc/hostname again/; sync`)
	copied := filepath.Join(t.TempDir(), "copied.ext4")
	tool(t, "dd", "if="+live, "of="+copied, "bs=1M", "iflag=direct", "status=none")
	a, b := openFS(t, from), openFS(t, copied)
	if len(b.overlay.numbers) == 0 {
		t.Fatal("the journal of the copy is empty: nothing is tested")
	}
	lines, totals := diff(t, a, b, Options{})
	kept := lines[:0]
	for _, line := range lines {
		if !strings.HasPrefix(line, "removed /many/") {
			kept = append(kept, line)
		}
	}
	want := []string{
		"added /again  | - | directory 755 0:0 0", "added /again/hostname  | - | file 4755 0:0 5", "added /again/numbers  | - | file 644 0:0 13893",
		"removed /etc/hostname  | file 4755 0:0 5 | -", "added /etc/new2  | - | file 644 0:0 2", "added /etc/new3  | - | file 644 0:0 2",
		"removed /many  | directory 755 0:0 0 | -",
	}
	if d := cmp.Diff(want, kept); d != "" || totals.Removed != 5002 {
		t.Errorf("%+v\n%s", totals, d)
	}
	// e2fsck replays on its own; the result is what we see.
	replayed := filepath.Join(t.TempDir(), "replayed.ext4")
	tool(t, "cp", "--sparse=always", copied, replayed)
	_, _ = exec.Command("e2fsck", "-fy", replayed).CombinedOutput()
	if left, _ := diff(t, b, openFS(t, replayed), Options{}); len(left) > 0 {
		t.Errorf("after e2fsck: %v", left)
	}
}

func TestRefusals(t *testing.T) {
	path := build(t, "echo a > a")
	good, err := os.ReadFile(path)
	must(t, err)
	for part, damage := range map[string]func(b []byte){
		"no ext4":         func(b []byte) { b[1024+0x38] = 0 },
		"inline_data":     func(b []byte) { b[1024+0x61] |= 0x80 },
		"encrypt":         func(b []byte) { b[1024+0x62] |= 1 },
		"bit 30":          func(b []byte) { b[1024+0x63] |= 0x40 },
		"4 KiB are":       func(b []byte) { b[1024+0x18] = 6 },
		"claims":          func(b []byte) { b[1024+0x7] = 9 },
		"0 for each":      func(b []byte) { copy(b[1024+0x28:], make([]byte, 4)) },
		"the inode table": func(b []byte) { copy(b[4096:], make([]byte, 4096)) },
	} {
		bad := filepath.Join(t.TempDir(), "bad")
		b := append([]byte(nil), good...)
		damage(b)
		must(t, os.WriteFile(bad, b, 0o600))
		fs, err := tryOpen(t, bad)
		if err == nil {
			_, err = Diff(t.Context(), fs, fs, Options{}, func(Entry) error { return nil })
		}
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", part, err)
		}
	}
	fs := openFS(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Diff(ctx, fs, fs, Options{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// debugfs runs commands that may write to the file system.
func debugfs(path, commands string) (string, error) {
	cmd := exec.Command("debugfs", "-w", "-f", "-", path)
	cmd.Stdin = strings.NewReader(commands)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
