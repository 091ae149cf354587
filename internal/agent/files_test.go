package agent

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vers/internal/fault"
	"vers/internal/guest"
)

func TestFiles(t *testing.T) {
	r := newRig(t)
	path := filepath.Join(r.root, "new/dir/file")
	content := bytes.Repeat([]byte("x1"), 500_000)
	if err := r.client.WriteFile(t.Context(), guest.FileRequest{Path: path}, bytes.NewReader(content)); !fault.Is(err, fault.NotFound) {
		t.Errorf("missing directory: %v", err)
	}
	must(t, r.client.WriteFile(t.Context(), guest.FileRequest{Path: path, Mode: 0o750, CreateDirs: true}, bytes.NewReader(content)))
	link := filepath.Join(r.root, "link")
	must(t, os.Symlink(path, link))
	body, info, err := r.client.ReadFile(t.Context(), guest.FileRequest{Path: link})
	must(t, err)
	got, err := io.ReadAll(body)
	must(t, err)
	must(t, body.Close())
	if !bytes.Equal(got, content) || info.Size != int64(len(content)) || info.Mode != 0o750 {
		t.Errorf("%d bytes back, %+v", len(got), info)
	}

	must(t, r.client.WriteFile(t.Context(), guest.FileRequest{Path: link}, strings.NewReader("")))
	if target, err := os.Readlink(link); err != nil || target != path {
		t.Errorf("the link became %q, %v", target, err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 0 || info.Mode() != 0o644 {
		t.Errorf("after writing nothing: %v, %v", info, err)
	}

	_, _, err = r.client.ReadFile(t.Context(), guest.FileRequest{Path: "/proc/self/status"})
	must(t, err)
	for name, want := range map[string]fault.Kind{
		"relative": fault.Invalid, r.root: fault.Invalid, "/dev/zero": fault.Invalid, "/no/such": fault.NotFound,
		path + "/below": fault.NotFound,
	} {
		if _, _, err := r.client.ReadFile(t.Context(), guest.FileRequest{Path: name}); !fault.Is(err, want) {
			t.Errorf("read %s: %v", name, err)
		}
		if err := r.client.WriteFile(t.Context(), guest.FileRequest{Path: name}, strings.NewReader("x")); !fault.Is(err, want) && name != "/no/such" {
			t.Errorf("write %s: %v", name, err)
		}
	}
}

// A file that arrives in part is not written at all.
func TestIncompleteFile(t *testing.T) {
	r := newRig(t)
	path := filepath.Join(r.root, "file")
	must(t, os.WriteFile(path, []byte("old"), 0o644))
	broken := errors.New("source broke")
	err := r.client.WriteFile(t.Context(), guest.FileRequest{Path: path}, io.MultiReader(strings.NewReader("new"), failing{broken}))
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	_, err = r.client.Hello(t.Context())
	must(t, err)
	if got := r.read("file"); got != "old" {
		t.Errorf("the file is now %q", got)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestDial(t *testing.T) {
	r := newRig(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	go echo(l)
	conn, err := r.client.Dial(t.Context(), "tcp", l.Addr().String())
	must(t, err)
	_, err = conn.Write([]byte("ping"))
	must(t, err)
	must(t, conn.(*net.TCPConn).CloseWrite())
	got, err := io.ReadAll(conn)
	must(t, err)
	if string(got) != "ping" {
		t.Errorf("got %q", got)
	}
	must(t, conn.Close())
	must(t, l.Close())
	if _, err := r.client.Dial(t.Context(), "tcp", l.Addr().String()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("nobody listens: %v", err)
	}
	if _, err := r.client.Dial(t.Context(), "ip", "127.0.0.1"); !fault.Is(err, fault.Invalid) {
		t.Errorf("unknown network: %v", err)
	}
}

// echo sends back what comes until l is closed.
func echo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}()
	}
}

// What is written in place stays, also when the rest does not come; a whole transfer ends the file.
func TestWriteInPlace(t *testing.T) {
	r := newRig(t)
	path := filepath.Join(r.root, "file")
	req := guest.FileRequest{Path: path, InPlace: true}
	if err := r.client.WriteFile(t.Context(), req, strings.NewReader("x")); !fault.Is(err, fault.NotFound) {
		t.Errorf("no file: %v", err)
	}
	must(t, os.WriteFile(path, []byte("0123456789"), 0o751))
	req.Offset = 4
	broken := errors.New("source broke")
	long := strings.Repeat("a", 3*guest.MaxChunk)
	if err := r.client.WriteFile(t.Context(), req, io.MultiReader(strings.NewReader(long), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	r.eventually("what has come is there", func() bool { return strings.HasPrefix(r.read("file"), "0123aaaa") })
	must(t, r.client.WriteFile(t.Context(), req, strings.NewReader("bcd")))
	if got := r.read("file"); got != "0123bcd" {
		t.Errorf("the file is now %q", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o751 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	body, _, err := r.client.ReadFile(t.Context(), guest.FileRequest{Path: path, Offset: 5})
	must(t, err)
	if got, err := io.ReadAll(body); err != nil || string(got) != "cd" {
		t.Errorf("from byte 5: %q, %v", got, err)
	}
	must(t, body.Close())
	for _, offset := range []int64{-1, 8} {
		req.Offset = offset
		if err := r.client.WriteFile(t.Context(), req, strings.NewReader("x")); !fault.Is(err, fault.Invalid) {
			t.Errorf("write at %d: %v", offset, err)
		}
		if _, _, err := r.client.ReadFile(t.Context(), guest.FileRequest{Path: path, Offset: offset}); !fault.Is(err, fault.Invalid) {
			t.Errorf("read at %d: %v", offset, err)
		}
	}
}
