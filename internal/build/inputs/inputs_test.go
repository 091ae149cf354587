package inputs_test

import (
	"archive/tar"
	"io"
	"strings"
	"testing"
	"time"

	"vers/internal/build/inputs"
)

type entry struct {
	tar.Header
	content string
}

func digest(t *testing.T, entries ...entry) string {
	t.Helper()
	sum := inputs.New()
	for _, e := range entries {
		e.Size = int64(len(e.content))
		if err := sum.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(sum, strings.NewReader(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if !inputs.Valid(sum.String()) {
		t.Errorf("%s is no digest", sum)
	}
	return sum.String()
}

// Whatever a build can see makes another digest; times, owners and ways to write the same name make none.
func TestSum(t *testing.T) {
	file := entry{tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Mode: 0o644}, "text"}
	link := entry{tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "a"}, ""}
	want := digest(t, file, link)
	same := file
	same.Name, same.ModTime, same.Uid, same.Uname, same.Mode, same.Format = "./a/b", time.Unix(99, 0), 7, "who", 0o100644, tar.FormatGNU
	if got := digest(t, same, entry{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "comment"}, ""}, link); got != want {
		t.Error("time, owner or format makes another digest")
	}
	seen := map[string]string{want: "nothing"}
	for what, entries := range map[string][]entry{
		"content":        {{file.Header, "texT"}, link},
		"name":           {{tar.Header{Name: "a/c", Typeflag: tar.TypeReg, Mode: 0o644}, "text"}, link},
		"mode":           {{tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Mode: 0o755}, "text"}, link},
		"setuid":         {{tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Mode: 0o4644}, "text"}, link},
		"target":         {file, {tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "b"}, ""}},
		"kind":           {file, {tar.Header{Name: "l", Typeflag: tar.TypeLink, Mode: 0o777, Linkname: "a"}, ""}},
		"one less":       {file},
		"one more":       {file, link, {tar.Header{Name: "z", Typeflag: tar.TypeDir, Mode: 0o755}, ""}},
		"empty":          {},
		"twice":          {file, file, link},
		"a name's end":   {{tar.Header{Name: "a/b\n0", Typeflag: tar.TypeReg, Mode: 0o644}, "text"}, link},
		"moved boundary": {{file.Header, "text2 777 0 1:l 1:a\n"}},
	} {
		got := digest(t, entries...)
		if other, ok := seen[got]; ok {
			t.Errorf("%q and %q have one digest", what, other)
		}
		seen[got] = what
	}
	for _, bad := range []string{"", "sha256:", strings.TrimPrefix(want, "sha256:"), strings.ToUpper(want), want + "0", want[:len(want)-1] + "g"} {
		if inputs.Valid(bad) {
			t.Errorf("%q passes for a digest", bad)
		}
	}
}
