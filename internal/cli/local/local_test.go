package local

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"vers/internal/fault"
)

const id = "2b4a1c2d-1111-4222-8333-0123456789ab"

func TestHead(t *testing.T) {
	f := Folder{Dir: t.TempDir()}
	want := func(wantID string, wantState HeadState) {
		t.Helper()
		got, state, err := f.Head()
		if err != nil || got != wantID || state != wantState {
			t.Errorf("Head() = %q, %v, %v; want %q, %v", got, state, err, wantID, wantState)
		}
	}
	want("", NoProject)
	if err := f.SetHead(id); err != nil {
		t.Fatal(err)
	}
	want(id, Set)
	if data, _ := os.ReadFile(f.headPath()); string(data) != id {
		t.Errorf("HEAD holds %q", data)
	}
	if cleared, err := f.ClearHead("other"); cleared || err != nil {
		t.Errorf("cleared for another VM: %v, %v", cleared, err)
	}
	want(id, Set)
	if cleared, err := f.ClearHead(id); !cleared || err != nil {
		t.Errorf("not cleared: %v, %v", cleared, err)
	}
	want("", Empty)
	for text, ok := range map[string]bool{id + "\n": true, " VM-" + id + " \r\n": true, "ref: x": false} {
		if err := os.WriteFile(f.headPath(), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, _, err := f.Head()
		if ok && got != id || !ok && !fault.Is(err, fault.Invalid) {
			t.Errorf("HEAD %q gives %q, %v", text, got, err)
		}
	}
}

func TestAliasesConcurrently(t *testing.T) {
	a := Aliases{Home: t.TempDir()}
	ctx := context.Background()
	const n = 40
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := a.Set(ctx, fmt.Sprintf("vm%d", i), id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, err := a.All()
	if err != nil || len(all) != n {
		t.Fatalf("%d aliases of %d survived: %v", len(all), n, err)
	}
	if previous, err := a.Set(ctx, "vm1", "other"); previous != id || err != nil {
		t.Errorf("previous = %q, %v", previous, err)
	}
	if err := a.RemoveVM(ctx, id); err != nil {
		t.Fatal(err)
	}
	if all, _ = a.All(); len(all) != 1 || all["vm1"] != "other" {
		t.Errorf("after RemoveVM: %v", all)
	}
	if found, err := a.Remove(ctx, "vm1"); !found || err != nil {
		t.Error(found, err)
	}
	if found, err := a.Remove(ctx, "vm1"); found || err != nil {
		t.Error(found, err)
	}
}

func TestDamagedFiles(t *testing.T) {
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, ".vers"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".vers/aliases.json", ".versrc"} {
		if err := os.WriteFile(filepath.Join(home, name), []byte("{nonsense"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := (Aliases{Home: home}).All(); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := LoadCredentials(home); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestCredentials(t *testing.T) {
	home := t.TempDir()
	if c, err := LoadCredentials(home); err != nil || c.APIKey != "" {
		t.Fatal(c, err)
	}
	want := Credentials{APIKey: "secret", URL: "http://h:1"}
	// A file that others could read before must not stay readable.
	if err := os.WriteFile(credentialsPath(home), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := want.Save(home); err != nil {
		t.Fatal(err)
	}
	got, err := LoadCredentials(home)
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	info, err := os.Stat(credentialsPath(home))
	if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
