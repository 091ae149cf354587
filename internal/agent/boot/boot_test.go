package boot

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"vers/internal/guest"
)

func TestCommandLine(t *testing.T) {
	got := parseCommandLine("console=ttyS0 quiet root=/dev/vda vers.mode=probe a=b=c\n")
	for name, want := range map[string]string{"root": "/dev/vda", "vers.mode": "probe", "a": "b=c", "quiet": ""} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

func TestResolver(t *testing.T) {
	ours := "nameserver 10.77.0.1\n"
	for name, c := range map[string]struct {
		file, link, target string // target is the content of what link names
		want               string
	}{
		"none":           {want: ours},
		"empty":          {file: "# nothing\n", want: ours},
		"own server":     {file: "search x\nnameserver 10.0.0.9\n", want: "search x\nnameserver 10.0.0.9\n"},
		"broken link":    {link: "../run/systemd/resolve/stub-resolv.conf", want: ours},
		"link to server": {link: "resolv.conf.image", target: "nameserver 10.0.0.8\n", want: "nameserver 10.0.0.8\n"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			etc := filepath.Join(root, "etc")
			must(t, os.Mkdir(etc, 0o755))
			path := filepath.Join(etc, "resolv.conf")
			if c.file != "" {
				must(t, os.WriteFile(path, []byte(c.file), 0o644))
			}
			if c.link != "" {
				must(t, os.Symlink(c.link, path))
			}
			if c.target != "" {
				must(t, os.WriteFile(filepath.Join(etc, c.link), []byte(c.target), 0o644))
			}
			must(t, writeResolver(root))
			got, err := os.ReadFile(path)
			must(t, err)
			if string(got) != c.want {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestUsableInit(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "systemd")
	must(t, os.WriteFile(target, []byte("\x7fELF"), 0o755))
	link := filepath.Join(dir, "init")
	must(t, os.Symlink(target, link))
	empty := filepath.Join(dir, "empty")
	must(t, os.WriteFile(empty, nil, 0o755))
	plain := filepath.Join(dir, "plain")
	must(t, os.WriteFile(plain, []byte("x"), 0o644))
	broken := filepath.Join(dir, "broken")
	must(t, os.Symlink("/no/such", broken))
	for path, want := range map[string]bool{link: true, empty: false, plain: false, broken: false, dir: false, dir + "/none": false} {
		if usableInit(path) != want {
			t.Errorf("usableInit(%s) is %v", path, !want)
		}
	}
}

func TestFirstProcessIsLearned(t *testing.T) {
	for written, want := range map[string]struct{ kind, path string }{
		"\n":               {guest.MainReaper, ""},
		"":                 {guest.MainReaper, ""}, // an agent that was started again
		"/no/init":         {guest.MainInit, "/no/init"},
		"/no/init\n\n":     {guest.MainReaper, ""},
		"/a\n/bin/no-such": {guest.MainInit, "/bin/no-such"},
	} {
		r, w, err := os.Pipe()
		must(t, err)
		_, err = w.WriteString(written)
		must(t, err)
		s := &startUp{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
		rehearsed := 0
		s.rehearse = func() error {
			if ready, _, _ := s.status(); ready {
				t.Error("ready before the rehearsal")
			}
			rehearsed++
			return nil
		}
		must(t, w.Close())
		s.follow(r)
		if rehearsed != 1 {
			t.Errorf("%q: %d rehearsals", written, rehearsed)
		}
		if ready, kind, path := s.status(); !ready || kind != want.kind || path != want.path {
			t.Errorf("%q: ready %v, %q, %q", written, ready, kind, path)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
