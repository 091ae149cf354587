package transfer

import (
	"bytes"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
)

// hostile is an SFTP server that wants to make its clients write elsewhere.
type hostile struct {
	lists   map[string][]entry
	outside string // where its links lead
}

// entry is what the server says about a name.
type entry struct {
	name string
	mode fs.FileMode
}

func (e entry) Name() string       { return e.name }
func (e entry) Size() int64        { return 4 }
func (e entry) Mode() fs.FileMode  { return e.mode }
func (e entry) ModTime() time.Time { return time.Unix(1, 0) }
func (e entry) IsDir() bool        { return e.mode.IsDir() }
func (e entry) Sys() any           { return nil }

func (hostile) Fileread(*sftp.Request) (io.ReaderAt, error) {
	return bytes.NewReader([]byte("evil")), nil
}
func (hostile) Filewrite(*sftp.Request) (io.WriterAt, error) { return nil, os.ErrPermission }
func (hostile) Filecmd(*sftp.Request) error                  { return os.ErrPermission }

type listing []fs.FileInfo

func (l listing) ListAt(to []fs.FileInfo, offset int64) (int, error) {
	if offset >= int64(len(l)) {
		return 0, io.EOF
	}
	return copy(to, l[offset:]), nil
}

func (h hostile) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	var all listing
	for _, e := range h.lists[r.Filepath] {
		all = append(all, e)
	}
	if r.Method != "List" {
		all = listing{entry{filepath.Base(r.Filepath), 0o644}}
		if h.lists[r.Filepath] != nil {
			all = listing{entry{filepath.Base(r.Filepath), fs.ModeDir | 0o755}}
		}
	}
	return all, nil
}

func (h hostile) Readlink(string) (string, error) { return h.outside, nil }

// against gives a copier that speaks with the server.
func (h hostile) against(t *testing.T) *Copier {
	t.Helper()
	near, far := net.Pipe()
	server := sftp.NewRequestServer(far, sftp.Handlers{FileGet: h, FilePut: h, FileCmd: h, FileList: h})
	go server.Serve()
	files, err := sftp.NewClientPipe(near, near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close(); server.Close() })
	return &Copier{files: files, Recursive: true, Failed: func(path string, err error) { t.Logf("%s: %v", path, err) }}
}

func TestHostileGuest(t *testing.T) {
	top := t.TempDir()
	outside := filepath.Join(top, "outside")
	if err := os.MkdirAll(filepath.Join(outside, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, file, link := fs.ModeDir|0o755, fs.FileMode(0o4755), fs.ModeSymlink|0o777
	for name, target := range map[string]string{"absolute link": outside, "relative link": "../../outside"} {
		t.Run(name, func(t *testing.T) {
			h := hostile{outside: target, lists: map[string][]entry{
				// A link and a folder of one name: what is in the folder would go where the link leads.
				"/evil": {{"ok", file}, {"x", link}, {"x", dir}, {"../escape", file}, {"..", dir}, {".", dir}, {"a/b", file}, {"", file},
					{"f", link}, {"f", file}, {"dev", fs.ModeDevice | 0o666}, {"pipe", fs.ModeNamedPipe | 0o666}},
				"/evil/x": {{"stolen", file}, {"x", dir}}, "/evil/x/x": {{"stolen", file}},
			}}
			c := h.against(t)
			dest := filepath.Join(top, strings.ReplaceAll(name, " ", "-"))
			if err := os.MkdirAll(dest, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.Download(t.Context(), "/evil", dest+"/"); err == nil {
				t.Error("no failure is told")
			}
			if data, err := os.ReadFile(filepath.Join(dest, "evil", "ok")); err != nil || string(data) != "evil" {
				t.Errorf("the good file: %q, %v", data, err)
			}
			if info, err := os.Stat(filepath.Join(dest, "evil", "ok")); err != nil || info.Mode() != 0o755 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			var found []string
			err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if rel, _ := filepath.Rel(dest, path); err == nil && !d.IsDir() && !filepath.IsLocal(rel) && !strings.Contains(path, "-link/") {
					found = append(found, path)
				}
				return err
			})
			if err != nil || len(found) > 0 {
				t.Errorf("written outside: %v, %v", found, err)
			}
		})
	}
}

// Links that are in the destination before, whoever made them, lead nowhere else.
func TestLinkInDestination(t *testing.T) {
	dest, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dest, "evil")); err != nil {
		t.Fatal(err)
	}
	h := hostile{lists: map[string][]entry{"/evil": {{"f", 0o644}}}}
	if err := h.against(t).Download(t.Context(), "/evil", dest); err == nil {
		t.Error("no failure is told")
	}
	if list, _ := os.ReadDir(outside); len(list) > 0 {
		t.Errorf("written outside: %v", list)
	}
}

// A folder without an end does not take the program along.
func TestEndlessFolders(t *testing.T) {
	h := hostile{lists: map[string][]entry{}}
	path := "/evil"
	for range 40 {
		h.lists[path] = []entry{{strings.Repeat("d", 200), fs.ModeDir | 0o755}}
		path += "/" + strings.Repeat("d", 200)
	}
	h.lists[path] = []entry{{"f", 0o644}}
	c := h.against(t)
	err := c.Download(t.Context(), "/evil", t.TempDir()+"/")
	t.Logf("%d folders, %v", c.Counts.Folders.Load(), err)
	if err != nil || c.Counts.Folders.Load() != 41 || c.Counts.Files.Load() != 1 {
		t.Errorf("%d folders of 8000 bytes of names: %v", c.Counts.Folders.Load(), err)
	}
}
