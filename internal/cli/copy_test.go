package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vers/test/rig"
)

// copied runs copy with JSON output and gives what it says.
func copied(t *testing.T, app *App, args ...string) copyResult {
	t.Helper()
	var out, notes bytes.Buffer
	app.Streams = &Streams{In: strings.NewReader(""), Out: &out, Err: &notes}
	if code := app.Run(context.Background(), append([]string{"copy", "--json"}, args...)); code != 0 {
		t.Fatalf("copy %v: exit code %d\n%s", args, code, &notes)
	}
	var result copyResult
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	return result
}

// large makes a file of random bytes.
func large(t *testing.T, path string, size int) []byte {
	t.Helper()
	content := make([]byte, size)
	_, _ = rand.Read(content)
	if err := os.WriteFile(path, content, 0o640); err != nil {
		t.Fatal(err)
	}
	return content
}

func wantFile(t *testing.T, path string, content []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%s: %d bytes that are not the %d expected ones (%v)", path, len(got), len(content), err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".vers-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// part waits until the unfinished copy in a folder has size bytes, and gives its path.
func part(t *testing.T, dir string, size int64) string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if found, _ := filepath.Glob(filepath.Join(dir, ".vers-*.part")); len(found) == 1 {
			if info, err := os.Stat(found[0]); err == nil && info.Size() >= size {
				return found[0]
			}
		}
	}
	t.Fatal("no copy is under way in " + dir)
	return ""
}

// A copy that was interrupted goes on where it stopped, both ways; what does not agree is copied again.
func TestCopyResumes(t *testing.T) {
	server := rig.New(t)
	app := appFor(t, server, nil)
	dir, vm := t.TempDir(), t.TempDir()
	const size = 48 << 20
	source := filepath.Join(dir, "large")
	content := large(t, source, size)
	for _, c := range []struct{ name, from, to, folder string }{
		{"upload", source, ":" + vm + "/up/large", vm + "/up"},
		{"download", ":" + source, dir + "/down/large", dir + "/down"}, // the fake's guests have this machine's files
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(context.Background())
			app.Streams = &Streams{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}
			done := start(ctx, app, "copy", c.from, c.to)
			unfinished := part(t, c.folder, 12<<20)
			cancel(&signalError{syscall.SIGINT})
			wantExit(t, done, 130)
			if _, err := os.Stat(filepath.Join(c.folder, "large")); err == nil {
				t.Fatal("the file is there before it is whole")
			}
			info, err := os.Stat(unfinished)
			if err != nil || info.Size() >= size || info.Mode().Perm() != 0o600 {
				t.Fatalf("%v, %v", info, err)
			}
			result := copied(t, app, c.from, c.to)
			if result.KeptBytes < 8<<20 || result.KeptBytes+result.Bytes != size {
				t.Errorf("kept %d, sent %d", result.KeptBytes, result.Bytes)
			}
			wantFile(t, filepath.Join(c.folder, "large"), content)
			if info, err := os.Stat(filepath.Join(c.folder, "large")); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("%v, %v", info, err)
			}

			// The same again: nothing is sent. With another content of the same size and time: that is.
			if result = copied(t, app, c.from, c.to); result.Unchanged != 1 || result.Bytes != 0 {
				t.Errorf("an unchanged file: %+v", result)
			}
			there := filepath.Join(c.folder, "large")
			info, err = os.Stat(there)
			if err != nil {
				t.Fatal(err)
			}
			changed := bytes.Clone(content)
			changed[size-1]++
			if err := os.WriteFile(there, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(there, info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
			// An unfinished copy of another file, with a good beginning.
			if err := os.WriteFile(unfinished, append(bytes.Clone(content[:5<<20]), "something else"...), 0o600); err != nil {
				t.Fatal(err)
			}
			if result = copied(t, app, c.from, c.to); result.KeptBytes != 4<<20 || result.Unchanged != 0 {
				t.Errorf("kept %d of a file whose second block differs; %+v", result.KeptBytes, result)
			}
			wantFile(t, there, content)
		})
	}
}

// A connection that breaks under way is made again, and the copy goes on.
func TestCopyReconnects(t *testing.T) {
	server := rig.New(t)
	app := appFor(t, server, nil)
	app.reconnectDelays = []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond}
	dir, vm := t.TempDir(), t.TempDir()
	content := large(t, filepath.Join(dir, "large"), 64<<20)
	var out bytes.Buffer
	app.Streams = &Streams{In: strings.NewReader(""), Out: &out, Err: &bytes.Buffer{}}
	done := start(context.Background(), app, "copy", "--json", dir+"/large", ":"+vm+"/large")
	for i := range 2 {
		part(t, vm, int64(i+1)*(12<<20))
		server.DropConnections()
	}
	wantExit(t, done, 0)
	var result copyResult
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(vm, "large"), content)
	if result.KeptBytes == 0 {
		t.Errorf("begun anew: %+v", result)
	}
}

// Copies of one file at the same time each give a whole file.
func TestCopiesAtOnce(t *testing.T) {
	server := rig.New(t)
	first := appFor(t, server, nil)
	dir, vm := t.TempDir(), t.TempDir()
	content := large(t, filepath.Join(dir, "large"), 12<<20)
	var wg sync.WaitGroup
	for range 4 {
		app := *first
		wg.Go(func() { copied(t, &app, dir+"/large", ":"+vm+"/large") })
	}
	wg.Wait()
	wantFile(t, filepath.Join(vm, "large"), content)
}

// A folder of many files with odd names, there and back.
func TestCopyOddNames(t *testing.T) {
	server := rig.New(t)
	app := appFor(t, server, nil)
	dir, vm := t.TempDir(), t.TempDir()
	names := []string{"a b", "new\nline", "\xff\xfe", "-rf", "*", "'\"$(x)`", "ü", ".hidden", strings.Repeat("n", 255), "back\\slash", ":colon", "~"}
	for i := range 200 {
		names = append(names, fmt.Sprintf("sub/%d/file", i))
	}
	for i, name := range names {
		path := filepath.Join(dir, "odd", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, fmt.Appendf(nil, "%d", i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "odd", "sub", "7"), 0o555); err != nil {
		t.Fatal(err)
	}
	up := copied(t, app, "-r", dir+"/odd", ":"+vm)
	down := copied(t, app, "-r", ":"+vm+"/odd", dir+"/back")
	again := copied(t, app, "-r", ":"+vm+"/odd", dir+"/back") // which is there now, so it goes into it
	if want := int64(len(names)); up.Files != want || down.Files != want || again.Files != want || up.Folders != 202 {
		t.Errorf("%+v\n%+v", up, down)
	}
	for i, name := range names {
		for _, back := range []string{"back", "back/odd"} {
			if data, err := os.ReadFile(filepath.Join(dir, back, name)); err != nil || string(data) != fmt.Sprint(i) {
				t.Errorf("%q: %q, %v", name, data, err)
			}
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "back", "sub", "7")); err != nil || info.Mode().Perm() != 0o555 {
		t.Errorf("%v, %v", info, err)
	}
}
