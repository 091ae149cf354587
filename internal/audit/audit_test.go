package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

func open(t *testing.T, path string, o Options) *Log {
	t.Helper()
	l, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func objects(t *testing.T, path string, f Filter) []string {
	t.Helper()
	var found []string
	if err := Read(path, f, func(e Entry) error { found = append(found, e.Object); return nil }); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	if got := objects(t, path, Filter{}); got != nil {
		t.Errorf("without a log: %v", got)
	}
	l := open(t, path, Options{})
	begin := time.Now()
	for i, org := range []string{"acme", "other", "acme"} {
		e := Entry{Time: begin.Add(time.Duration(i) * time.Hour), Org: org, OrgID: "id of " + org, Action: "x", Object: fmt.Sprint(i), Result: "ok"}
		if err := l.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		filter Filter
		want   []string
	}{
		{Filter{}, []string{"0", "1", "2"}},
		{Filter{Org: "acme"}, []string{"0", "2"}},
		{Filter{Org: "id of other"}, []string{"1"}},
		{Filter{Since: begin.Add(time.Hour)}, []string{"1", "2"}},
		{Filter{Org: "acme", Since: begin.Add(3 * time.Hour)}, nil},
	} {
		if got := objects(t, path, c.filter); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.filter, got, c.want)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// A line that a crash cut off spoils neither what was before nor what comes after.
func TestCutLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	if err := os.WriteFile(path, []byte(`{"action":"a","object":"1","result":"ok"}`+"\n"+`{"action":"b","obj`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path, Options{}).Append(Entry{Object: "2"}); err != nil {
		t.Fatal(err)
	}
	if got := objects(t, path, Filter{}); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("%v", got)
	}
}

// Two logs on one file stand for two processes. Nothing is lost while both rotate.
func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	const each = 300
	var wait sync.WaitGroup
	for w := range 2 {
		l := open(t, path, Options{MaxBytes: 4 << 10, Files: 100})
		for g := range 2 {
			wait.Go(func() {
				for i := range each {
					if err := l.Append(Entry{Action: "x", Object: fmt.Sprintf("%d-%d-%d", w, g, i), Result: "ok"}); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wait.Wait()
	got := objects(t, path, Filter{})
	slices.Sort(got)
	if n := len(slices.Compact(got)); n != 4*each {
		t.Errorf("%d of %d entries are there", n, 4*each)
	}
	if _, err := os.Stat(path + ".2"); err != nil {
		t.Errorf("it did not rotate: %v", err)
	}
}

func TestOldFilesGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	l := open(t, path, Options{MaxBytes: 200, Files: 3})
	for i := range 50 {
		if err := l.Append(Entry{Action: "x", Object: fmt.Sprint(i), Result: "ok"}); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return f == path+".lock" })
	if len(files) != 3 {
		t.Errorf("%v", files)
	}
	if got := objects(t, path, Filter{}); got[len(got)-1] != "49" || got[0] == "0" {
		t.Errorf("%v", got)
	}
}
