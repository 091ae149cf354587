package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vers/internal/fault"
)

// variety is an archive with what file systems differ in.
func variety(t *testing.T) []byte {
	t.Helper()
	return archive(t,
		folder(".", 0o755), folder("d", 0o1777),
		file("d/owned", "hello", func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o6755, 100000, 4_000_000_000 }),
		link(tar.TypeLink, "d/hard", "d/owned"), link(tar.TypeSymlink, "sym", "d/owned"), link(tar.TypeSymlink, "host", "/etc/passwd"),
		node(tar.TypeChar, "null", 1, 3), node(tar.TypeBlock, "disk", 259, 70000), node(tar.TypeFifo, "pipe", 0, 0),
		file("sparse", "a"+strings.Repeat("\x00", 3<<20)+"b"), file("twice", "first"), file("twice", "second"), file("/../up", "x"),
		file("xattr", "x", func(h *tar.Header) {
			h.PAXRecords = map[string]string{paxXattr + "user.a": "b", paxXattr + "trusted.c": "d", paxACL: "user::rw-,user:54321:r--,group::r--,mask::r--,other::r--"}
		}),
		file("old", "x", func(h *tar.Header) { h.ModTime = time.Unix(-3600, 0) }), folder("empty", 0o700),
	)
}

// Every type holds the same tree, but for what its warnings say. The digest is that of the archive, so it is the same.
func TestTypes(t *testing.T) {
	needRoot(t)
	path, ext4 := write(t, variety(t), Options{})
	want := look(t, path, "ext4")
	fraction, acl := regexp.MustCompile(`\.\d{9}`), regexp.MustCompile(` system\.\S+`)
	sgi := regexp.MustCompile(` trusted\.SGI_\S+`)
	for name, tt := range map[Type]struct {
		warnings int
		lost     func(name, text string) string
		check    []string
	}{
		Btrfs: {0, func(_, text string) string { return text }, []string{"btrfs", "check", "-q"}},
		XFS:   {0, func(_, text string) string { return text }, []string{"xfs_repair", "-n", "-f"}},
		Erofs: {0, func(_, text string) string { return text }, []string{"fsck.erofs"}},
		Squashfs: {3, func(_, text string) string {
			return strings.Replace(acl.ReplaceAllString(fraction.ReplaceAllString(text, ".000000000"), ""), " -3600.", " 0.", 1)
		}, []string{"unsquashfs", "-s"}},
	} {
		t.Run(string(name), func(t *testing.T) {
			path, result := write(t, variety(t), Options{Type: name})
			wanted := map[string]string{}
			for key, text := range want {
				wanted[key] = tt.lost(key, text)
			}
			found := look(t, path, string(name))
			for key, text := range found { // XFS shows lists twice
				found[key] = sgi.ReplaceAllString(text, "")
			}
			differ(t, wanted, found)
			if result.Tree != ext4.Tree || result.Entries != ext4.Entries || len(result.Warnings) != tt.warnings {
				t.Errorf("%+v, ext4 %+v", result, ext4)
			}
			tool(t, tt.check[0], append(tt.check[1:], path)...)
			again, _ := write(t, variety(t), Options{Type: name})
			if a, b := blkid(t, path), blkid(t, again); a != b {
				t.Errorf("the same tree has UUIDs %s and %s", a, b)
			}
			if name == Erofs || name == Squashfs {
				a, err := os.ReadFile(path)
				must(t, err)
				b, err := os.ReadFile(again)
				must(t, err)
				if name == Squashfs && !bytes.Equal(a, b) { // the other has the time of its making in it
					t.Error("the same tree gives other bytes")
				}
				padded, result := write(t, variety(t), Options{Type: name, SizeBytes: 8 << 20})
				if result.SizeBytes != 8<<20 || len(look(t, padded, string(name))) != len(want) {
					t.Errorf("with a size: %+v", result)
				}
				_, err = Write(t.Context(), bytes.NewReader(variety(t)), filepath.Join(t.TempDir(), "i"), Options{Type: name, SizeBytes: 100})
				if !fault.Is(err, fault.Exhausted) {
					t.Errorf("100 bytes: %v", err)
				}
			}
		})
	}
}

func blkid(t *testing.T, path string) string {
	t.Helper()
	out := tool(t, "blkid", "-p", "-o", "export", "-s", "UUID", "-s", "LABEL", "-s", "TYPE", path)
	return strings.Replace(out, path, "", 1)
}

// FAT is made when it is asked for with what it loses.
func TestVFAT(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if _, err := Write(t.Context(), bytes.NewReader(variety(t)), path, Options{Type: VFAT}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "ext4") {
		t.Errorf("got %v", err)
	}
	for _, names := range [][]entry{{file("a:b", "")}, {file("Name", ""), file("name", "")}, {file("d/x.", "")}, {file("\xff", "")}} {
		if _, err := Write(t.Context(), bytes.NewReader(archive(t, names...)), path, Options{Type: VFAT, Lossy: true}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", names[0].Name, err)
		}
	}
	path, result := write(t, variety(t), Options{Type: VFAT, Lossy: true})
	tool(t, "fsck.vfat", "-n", path)
	out := t.TempDir()
	tool(t, "mcopy", "-s", "-n", "-i", path, "::/", out)
	got := map[string]string{}
	must(t, filepath.Walk(out, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			var content []byte
			content, err = os.ReadFile(path)
			got[strings.TrimPrefix(path, out+"/")] = string(content)
		}
		return err
	}))
	differ(t, map[string]string{
		"d/owned": "hello", "d/hard": "hello", "sparse": "a" + strings.Repeat("\x00", 3<<20) + "b", "twice": "second", "up": "x", "xattr": "x", "old": "x",
	}, got)
	if info, err := os.Stat(filepath.Join(out, "empty")); err != nil || !info.IsDir() || len(result.Warnings) != 5 {
		t.Errorf("%v, warnings %q", err, result.Warnings)
	}
}

// A type whose program is not there says which package brings it. Nothing stays.
func TestMissingTools(t *testing.T) {
	for name, pkg := range map[Type]string{Squashfs: "squashfs-tools", VFAT: "dosfstools"} {
		t.Run(string(name), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			t.Setenv("PATH", t.TempDir())
			if _, err := os.Stat("/usr/sbin/mkfs.vfat"); name == VFAT && !errors.Is(err, os.ErrNotExist) {
				t.Skip("programs in /usr/sbin are found without PATH")
			}
			_, err := Write(t.Context(), bytes.NewReader(variety(t)), path, Options{Type: name, Lossy: true})
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), pkg) {
				t.Errorf("got %v", err)
			}
			if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) > 0 {
				t.Errorf("left behind: %v (%v)", entries, err)
			}
		})
	}
}

// Without root, ext4, squashfs and vfat are made, and the others say what they need.
func TestTypesWithoutRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("run by TestUnprivilegedUser as another user")
	}
	for _, name := range []Type{Ext4, Squashfs, VFAT, Btrfs, XFS, Erofs} {
		_, err := Write(t.Context(), bytes.NewReader(variety(t)), filepath.Join(t.TempDir(), "image"), Options{Type: name, Lossy: true})
		if needs := name == Btrfs || name == XFS || name == Erofs; needs != fault.Is(err, fault.Unavailable) || !needs && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
