package buildfs

import (
	"archive/tar"
	"os"
	"path/filepath"
	"testing"
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

// FuzzUnpack: no archive writes outside of its folder.
func FuzzUnpack(f *testing.F) {
	t := &testing.T{}
	plain := archiveOf(t, tar.Header{Name: "build.toml", Linkname: readme}, tar.Header{Name: "a/../../x", Linkname: "y"})
	f.Add(plain)
	f.Add(gzipped(t, plain))
	f.Add(archiveOf(t, tar.Header{Name: "l", Linkname: "..", Typeflag: tar.TypeSymlink}, tar.Header{Name: "l/x", Linkname: "y"}))
	f.Add(archiveOf(t, tar.Header{Name: "h", Linkname: "l/x", Typeflag: tar.TypeLink}))
	f.Fuzz(func(t *testing.T, data []byte) {
		outer := t.TempDir()
		path := filepath.Join(outer, "p")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		err := Unpack(t.Context(), path, filepath.Join(outer, "in", "er"))
		entries, readErr := os.ReadDir(outer)
		if readErr != nil {
			t.Fatal(readErr)
		}
		for _, e := range entries {
			if e.Name() != "p" && e.Name() != "in" {
				t.Errorf("%s got outside", e.Name())
			}
		}
		if inner, _ := os.ReadDir(filepath.Join(outer, "in")); len(inner) > 1 {
			t.Errorf("something got outside: %v", inner)
		}
		if err != nil {
			if _, statErr := os.Stat(filepath.Join(outer, "in", "er")); statErr == nil {
				t.Errorf("a refused archive leaves its folder: %v", err)
			}
		}
	})
}
