package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"vers/internal/fault"
	"vers/internal/guest"
)

// tarball makes an archive: a name that ends in / is a folder, name->target a link, else a file with its name as content.
func tarball(t *testing.T, names ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range names {
		h := &tar.Header{Name: name, Mode: 0o640, Size: int64(len(name)), Uid: os.Geteuid(), Gid: os.Getegid(), ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX}
		if link, target, ok := strings.Cut(name, "->"); ok {
			h.Name, h.Linkname, h.Typeflag, h.Size = link, target, tar.TypeSymlink, 0
		} else if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o2750, 0
		}
		must(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := io.WriteString(w, name)
			must(t, err)
		}
	}
	must(t, w.Close())
	return out.Bytes()
}

// tree lists what is below a folder.
func tree(t *testing.T, root string) []string {
	t.Helper()
	var list []string
	must(t, filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		must(t, err)
		rel, err := filepath.Rel(root, path)
		must(t, err)
		line := fmt.Sprintf("%s %s", info.Mode(), rel)
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			must(t, err)
			line += "=" + string(data)
		} else if target, err := os.Readlink(path); err == nil {
			line += "->" + target
		}
		list = append(list, line)
		return nil
	}))
	return list
}

func TestUnpackAndPack(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	unpack := func(req guest.UnpackRequest, names ...string) error {
		return r.client.Unpack(ctx, req, bytes.NewReader(tarball(t, names...)))
	}
	must(t, os.MkdirAll(filepath.Join(r.root, "usr/bin"), 0o755))
	must(t, os.Symlink("usr/bin", filepath.Join(r.root, "bin")))
	must(t, os.Symlink("/usr", filepath.Join(r.root, "absolute"))) // of the guest's root, not of ours
	old := syscall.Umask(0o077)                                    // that of the agent must not matter
	defer syscall.Umask(old)
	must(t, unpack(guest.UnpackRequest{Path: "/bin"}, "./", "tool", "sub/", "sub/leaf", "link->tool"))
	must(t, unpack(guest.UnpackRequest{Path: "/absolute/new/deep"}, "./", "a/b"))
	must(t, unpack(guest.UnpackRequest{Path: "/absolute", Into: "named"}, "."))
	must(t, unpack(guest.UnpackRequest{Path: "/usr/named", Into: "other"}, "."))
	must(t, unpack(guest.UnpackRequest{Path: "/usr/bin"}, "link", "tool->sub"))
	want := []string{
		"drwxr-xr-x .", "drwxr-xr-x bin", "-rw-r----- bin/link=link", "dgrwxr-x--- bin/sub", "-rw-r----- bin/sub/leaf=sub/leaf", "Lrwxrwxrwx bin/tool->sub",
		"-rw-r----- named=.", "drwxr-xr-x new", "dgrwxr-x--- new/deep", "drwxr-xr-x new/deep/a", "-rw-r----- new/deep/a/b=a/b",
	}
	if d := cmp.Diff(want, tree(t, filepath.Join(r.root, "usr"))); d != "" {
		t.Error(d)
	}
	info, err := os.Stat(filepath.Join(r.root, "usr/bin/link"))
	must(t, err)
	if !info.ModTime().Equal(time.Unix(1e9, 0)) {
		t.Error(info.ModTime())
	}
	for what, tt := range map[string]struct {
		req   guest.UnpackRequest
		names []string
		says  string
	}{
		"out":              {guest.UnpackRequest{Path: "/x"}, []string{"../y"}, "leads out of its folder"},
		"absolute":         {guest.UnpackRequest{Path: "/x"}, []string{"/y"}, "leads out of its folder"},
		"relative path":    {guest.UnpackRequest{Path: "x"}, []string{"y"}, "is not absolute"},
		"into":             {guest.UnpackRequest{Path: "/x", Into: "a/b"}, []string{"."}, "not the name of a file"},
		"file over folder": {guest.UnpackRequest{Path: "/usr"}, []string{"bin"}, "is a directory"},
		"below a file":     {guest.UnpackRequest{Path: "/usr/named/x"}, []string{"y"}, "is a file, not a directory"},
		"owner":            {guest.UnpackRequest{Path: "/x", Owner: "nobody-here"}, []string{"y"}, "no user"},
		"group":            {guest.UnpackRequest{Path: "/x", Owner: "root:nobody-here"}, []string{"y"}, "no group"},
	} {
		if err := unpack(tt.req, tt.names...); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: want %q, got %v", what, tt.says, err)
		}
	}
	if err := r.client.Unpack(ctx, guest.UnpackRequest{Path: "/x"}, strings.NewReader(strings.Repeat("no archive ", 100))); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	must(t, os.Symlink("circle", filepath.Join(r.root, "circle")))
	if err := unpack(guest.UnpackRequest{Path: "/circle/x"}, "y"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "40 symbolic links") {
		t.Error(err)
	}

	pack := func(paths ...string) []string {
		t.Helper()
		archive, err := r.client.Pack(ctx, guest.PackRequest{Paths: paths})
		must(t, err)
		defer archive.Close()
		var names []string
		for reader := tar.NewReader(archive); ; {
			h, err := reader.Next()
			if errors.Is(err, io.EOF) {
				_, err := io.Copy(io.Discard, archive)
				must(t, err)
				return names
			}
			must(t, err)
			names = append(names, strings.TrimSuffix(h.Name+"->"+h.Linkname, "->"))
		}
	}
	for pattern, want := range map[string][]string{
		"/bin/sub/leaf":     {"bin->usr/bin", "usr/bin/sub/leaf"},
		"/absolute/new":     {"absolute->/usr", "usr/new/", "usr/new/deep/", "usr/new/deep/a/", "usr/new/deep/a/b"},
		"/usr/*/tool":       {"usr/bin/tool->sub", "usr/bin/sub/", "usr/bin/sub/leaf"},
		"/nothing":          nil,
		"/usr/named/nobody": nil,
	} {
		if got := pack(pattern); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", pattern, got, want)
		}
	}
	if _, err := r.client.Pack(ctx, guest.PackRequest{}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

// Owners and attributes go along, where the test may set them.
func TestUnpackOwnersAndAttributes(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	must(t, os.WriteFile(filepath.Join(r.root, "etc/passwd"), []byte("root:x:0:0:root:/:/bin/sh\napp:x:1001:1002::/:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(r.root, "etc/group"), []byte("root:x:0:\nweb:x:1003:app\n"), 0o644))
	owner := func(name string) string {
		info, err := os.Lstat(filepath.Join(r.root, name))
		must(t, err)
		stat := info.Sys().(*syscall.Stat_t)
		return fmt.Sprintf("%d:%d %o", stat.Uid, stat.Gid, stat.Mode&0o7777)
	}
	for spec, want := range map[string]string{"app": "1001:1001 640", "app:web": "1001:1003 640", "5": "5:5 640", "7:8": "7:8 640", "root:web": "0:1003 640"} {
		must(t, r.client.Unpack(ctx, guest.UnpackRequest{Path: "/made/by", Owner: spec}, bytes.NewReader(tarball(t, "file"))))
		if got := owner("made/by/file"); got != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
		if got, want := owner("made"), strings.Replace(want, "640", "755", 1); got != want {
			t.Errorf("%s: the folder has %s, want %s", spec, got, want)
		}
		must(t, os.RemoveAll(filepath.Join(r.root, "made")))
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	must(t, w.WriteHeader(&tar.Header{Name: "ping", Mode: 0o4755, Uid: 3, Gid: 4, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.trusted.x": "not carried"}}))
	must(t, w.Close())
	must(t, r.client.Unpack(ctx, guest.UnpackRequest{Path: "/"}, &out))
	if got := owner("ping"); got != "3:4 4755" {
		t.Error(got)
	}
	archive, err := r.client.Pack(ctx, guest.PackRequest{Paths: []string{"/ping"}})
	must(t, err)
	defer archive.Close()
	h, err := tar.NewReader(archive).Next()
	must(t, err)
	buffer := make([]byte, 100)
	if n, err := unix.Lgetxattr(filepath.Join(r.root, "ping"), "security.capability", buffer); err == nil && n > 0 {
		if h.PAXRecords["SCHILY.xattr.security.capability"] != capability {
			t.Errorf("%q", h.PAXRecords)
		}
	} else {
		t.Errorf("no capability: %d %v", n, err)
	}
	if h.Uid != 3 || h.Gid != 4 || h.Mode != 0o4755 {
		t.Errorf("%+v", h)
	}
	// Users of commands: numbers that nobody has, and groups.
	for user, want := range map[string]string{"4711": "4711 0", "4711:12": "4711 12", "app": "1001 1002", "app:web": "1001 1003", "0:12": "0 12"} {
		stream, err := r.client.Exec(ctx, guest.ExecRequest{Command: []string{"sh", "-c", "echo $(id -u) $(id -g)"}, User: user, WorkingDir: "/"})
		must(t, err)
		event, err := stream.Recv()
		must(t, err)
		if got := strings.TrimSpace(string(event.Data)); got != want {
			t.Errorf("%s: %q, want %q", user, got, want)
		}
		stream.Close()
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte("x"), "/a")
	f.Fuzz(func(t *testing.T, data []byte, path string) {
		root := t.TempDir()
		must(t, os.MkdirAll(root+"/inner/etc", 0o755))
		s := New(Config{Root: root + "/inner"})
		if u, err := s.unpacker(guest.UnpackRequest{Path: path}); err == nil {
			_ = u.all(tar.NewReader(bytes.NewReader(data)))
		}
		if list, err := os.ReadDir(root); err != nil || len(list) != 1 {
			t.Errorf("written outside of the root: %v %v", list, err)
		}
	})
}
