package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// entriesOf reads entries of a text: each line is a type, a name and, after blanks, a target or content. Lines that no
// archive can hold are left out.
func entriesOf(text string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) < 2 {
			continue
		}
		name, rest, _ := strings.Cut(line[1:], " ")
		hdr := &tar.Header{Typeflag: line[0], Name: name, Mode: int64(len(line)) * 0o111 & 0o7777, Format: tar.FormatPAX}
		switch line[0] {
		case tar.TypeReg:
			hdr.Size = int64(len(rest))
		case tar.TypeLink, tar.TypeSymlink:
			hdr.Linkname, rest = rest, ""
		case tar.TypeChar, tar.TypeBlock:
			hdr.Devmajor, hdr.Devminor, rest = int64(len(rest)), int64(len(name)), ""
		case tar.TypeDir:
			hdr.Name, rest = name+"/", ""
		default:
			rest = ""
		}
		if w.WriteHeader(hdr) == nil {
			if _, err := w.Write([]byte(rest)); err != nil {
				break
			}
		}
	}
	w.Close()
	return b.Bytes()
}

// Whatever an archive says, nothing outside of the tree is touched, it ends soon, and what is wrong is said to be the
// archive's fault.
func FuzzExtract(f *testing.F) {
	for _, seed := range []string{
		"0/etc/passwd root::0:0\n0../../x y\n0a/../../../b c",
		"2out /\n0out/etc/shadow x\n2up ../../../..\n0up/tmp/x x\n2outside ../outside\n0outside/victim x\n1stolen ../outside/victim",
		"2a b\n2b a\n0a/x y\n2loop loop\n0loop/x y\n1loop loop",
		"5d\n5d/e\n0d/e/f x\n0d file\n5d\n2d e\n0d/x y",
		"3null 123\n4disk 12345\n6pipe\n3.. x\n6.",
		"0twice 1\n1other twice\n0twice 2\n1twice other\n1twice twice\n1gone nothing",
		"5.\n5..\n5/\n0./ x\n2. x\n1x .\n0x/y/z",
		"2link dangling/deep/er\n0link/file x\n2abs /not/there\n0abs/file x\n2self self/x\n0self/y z",
		"0\xff\xfe x\n0new\tline x\n0" + strings.Repeat("n", 300) + " x",
		"5dev\n3dev/null x\n2etc var/etc\n0etc/hostname x\n2tmp /\n2proc ../..\n0.dockerenv x\n5.dockerenv/x",
	} {
		f.Add(false, []byte(seed))
		f.Add(true, entriesOf(seed))
	}
	f.Add(true, []byte("\x1f\x8b\x08\x00broken"))
	f.Add(true, []byte("\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, raw bool, data []byte) {
		if !raw {
			data = entriesOf(string(data))
		}
		top := t.TempDir()
		must(t, os.Mkdir(filepath.Join(top, "outside"), 0o700))
		must(t, os.WriteFile(filepath.Join(top, "outside", "victim"), []byte("untouched"), 0o600))
		before := snapshot(t, top)
		digest := ""
		for _, way := range []struct{ staged, bootable bool }{{true, false}, {false, false}, {true, true}} {
			if !way.staged && os.Geteuid() != 0 {
				continue
			}
			got, err := extractInto(t, top, data, way.staged, way.bootable)
			if err != nil && fault.KindOf(err) != fault.Invalid && fault.KindOf(err) != fault.Exhausted {
				t.Errorf("%+v: %v is nobody's fault", way, err)
			}
			if err == nil && !way.bootable {
				if digest != "" && digest != got {
					t.Errorf("two ways, two digests")
				}
				digest = got
			}
			if after := snapshot(t, top); after != before {
				t.Fatalf("%+v: outside of the tree:\n%s\nbefore:\n%s", way, after, before)
			}
		}
	})
}

func extractInto(t *testing.T, top string, data []byte, staged, bootable bool) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	dir := filepath.Join(top, "tree")
	must(t, os.Mkdir(dir, 0o700))
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	tree := newTree(root, Options{Bootable: bootable, Limits: Limits{Bytes: 1 << 20, Entries: 1000}}, staged, &warnings{})
	tree.budget.holes = limitHoles - 1<<26 // long holes take time only
	defer func() {
		must(t, errors.Join(tree.empty(root), os.Remove(dir)))
	}()
	s, err := openStream(ctx, bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	defer s.close()
	if err := tree.fill(ctx, s); err != nil {
		return "", err
	}
	digest, _, err := tree.finish(ctx)
	return digest, err
}

// snapshot describes what is around the tree.
func snapshot(t *testing.T, top string) string {
	t.Helper()
	text := ""
	must(t, filepath.Walk(top, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			var content []byte
			content, err = os.ReadFile(path)
			text += string(content)
		}
		text += path + info.Mode().String() + info.ModTime().String() + "\n"
		return err
	}))
	// The folder itself changes when the tree comes and goes.
	_, rest, _ := strings.Cut(text, "\n")
	return rest
}
