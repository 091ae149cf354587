package buildfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vers/internal/fault"
)

// FuzzCheck: whatever the text is, a check ends, and either names a fault or gives a script.
func FuzzCheck(f *testing.F) {
	for _, seed := range []string{readme, packageScript, Example, "", "[container]\nimage = 'a'\n", "a.b.c = [[1], {x = 1}]\n[[a.d]]\n[[a.d.e]]\n",
		"commands = [{command = ['a']}, 3]\n", "version = 99999999999999999999\n", "[export]\nexclude = ['**/**/**/**/x']\n"} {
		f.Add([]byte(seed), "filesystem.size_mib=1")
	}
	f.Fuzz(func(t *testing.T, text []byte, setting string) {
		p := &Package{Path: "x", Kind: KindScript, file: "x", text: text}
		script, report, err := p.Check(CheckOptions{Set: []string{setting}})
		if err != nil {
			return // of the setting
		}
		if script == nil && len(report.Faults) == 0 {
			t.Error("neither a script nor a fault")
		}
		for _, problem := range report.Faults {
			if problem.Message == "" || problem.Line < 0 {
				t.Errorf("a fault without words: %+v", problem)
			}
		}
	})
}

// entriesOf makes an archive of a text: each line is a type, a name and, after a blank, a link's target or a file's content.
// Changes of a text give other archives; most changes of an archive only break its checksums.
func entriesOf(text string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) < 2 {
			continue
		}
		name, rest, _ := strings.Cut(line[1:], " ")
		h := &tar.Header{Typeflag: line[0], Name: name, Mode: int64(len(line)) * 0o111 & 0o777}
		switch line[0] {
		case tar.TypeReg:
			h.Size = int64(len(rest))
		default:
			h.Linkname, rest = rest, ""
		}
		if w.WriteHeader(h) == nil {
			_, _ = io.WriteString(w, rest)
		}
	}
	_ = w.Close()
	return b.Bytes()
}

// FuzzUnpack: no archive reaches anything outside of its folder, what is wrong is the archive's fault, and nothing of a
// refused one stays.
func FuzzUnpack(f *testing.F) {
	for _, seed := range []string{
		"0build.toml x\n5scripts/\n0scripts/a.sh y", "0a/../../x y\n0/../x y\n0../victim y", "2l ..\n0l/victim y\n1h l/victim", "2l /\n0l/etc/x y\n5l/",
		"1h ../victim\n0h changed", "2a b\n2b a\n0a/x y\n5b/x", "0a x\n0a/b x\n5a\n2a b\n0a x", "3null\n4disk\n6pipe\n7x y\ngx", "2in ../..\n0in/in/er/x y\n1z in/victim",
	} {
		f.Add(false, []byte(seed))
	}
	plain := entriesOf("0build.toml x\n2l ..\n0l/x y")
	f.Add(true, plain)
	f.Add(true, gzipped(f, plain))
	outer := f.TempDir()
	path, inner, victim := filepath.Join(outer, "p"), filepath.Join(outer, "in"), filepath.Join(outer, "victim")
	must(f, os.WriteFile(victim, []byte("whole"), 0o600))
	f.Fuzz(func(t *testing.T, raw bool, data []byte) {
		if !raw {
			data = entriesOf(string(data))
		}
		must(t, os.WriteFile(path, data, 0o644))
		err := Unpack(t.Context(), path, filepath.Join(inner, "er"))
		if err != nil && fault.KindOf(err) != fault.Invalid && fault.KindOf(err) != fault.Exhausted {
			t.Errorf("nobody's fault: %v", err)
		}
		for _, folder := range []struct {
			path  string
			names []string
		}{{outer, []string{"in", "p", "victim"}}, {inner, []string{"er"}}} {
			entries, readErr := os.ReadDir(folder.path)
			if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
				t.Fatal(readErr)
			}
			for _, e := range entries {
				if !slices.Contains(folder.names, e.Name()) {
					t.Errorf("%s got outside", e.Name())
				}
			}
		}
		var st syscall.Stat_t
		must(t, syscall.Stat(victim, &st))
		if text, readErr := os.ReadFile(victim); readErr != nil || string(text) != "whole" || st.Nlink != 1 || st.Mode&0o777 != 0o600 {
			t.Fatalf("a file outside: %q, %+v, %v", text, st, readErr)
		}
		if _, statErr := os.Lstat(filepath.Join(inner, "er")); err != nil && statErr == nil {
			t.Errorf("a refused archive leaves its folder: %v", err)
		}
		must(t, os.RemoveAll(inner))
	})
}
