package cli

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vers/api"
	"vers/internal/fault"
)

func TestPrintDiff(t *testing.T) {
	text := func(s string) *string { return &s }
	size := func(n int64) *int64 { return &n }
	d := api.Diff{Added: 1, Removed: 1, Changed: 3, BytesAdded: 3 << 20, BytesRemoved: 1000, Truncated: true, Entries: []api.DiffEntry{
		{Path: "/etc/new", Change: "added", Kind: "file", SizeTo: size(1536), ModeTo: text("0644"), OwnerTo: text("0:0")},
		{Path: "/etc/x\nM  /bin/sh", Change: "removed", Kind: "symlink", SizeFrom: size(2), TargetFrom: text("yy")},
		{Path: "/a\uFFFD", PathBytes: []byte("/a\xff"), Change: "changed", Kind: "directory", KindFrom: "file", SizeFrom: size(2), What: []string{"type", "mode"},
			ModeFrom: text("0644"), ModeTo: text("0755")},
		{Path: "/b", Change: "changed", Kind: "file", What: []string{"content", "xattrs"}, SizeFrom: size(5), SizeTo: size(5), OwnerFrom: text("0:0"), OwnerTo: text("0:0")},
		{Path: "/l", Change: "changed", Kind: "symlink", What: []string{"target"}, TargetFrom: text("o\x1b[31m"), TargetTo: text("n")},
	}}
	for _, test := range []struct {
		mode mode
		stat bool
		want string
	}{
		{modeText, false, `A  /etc/new  (1.5 KiB)
D  "/etc/x\nM  /bin/sh"  (symlink)
M  "/a\xff"  (type file → directory, mode 0644 → 0755)
M  /b  (5 B → 5 B, extended attributes)
M  /l  (symlink, target o[31m → n)
1 added, 3 changed, 1 removed; +3.0 MiB, -1000 B
`},
		{modeQuiet, false, "/etc/new\n\"/etc/x\\nM  /bin/sh\"\n\"/a\\xff\"\n/b\n/l\n"},
		{modeText, true, "ADDED  CHANGED  REMOVED  BELOW\n1      0        1        /etc\n0      1        0        /a\uFFFD\n0      1        0        /b\n" +
			"0      1        0        /l\n1 added, 3 changed, 1 removed; +3.0 MiB, -1000 B\n"},
	} {
		var out, notes bytes.Buffer
		a := &App{Streams: &Streams{Out: &out, Err: &notes, Width: func() int { return 0 }}}
		a.printDiff(test.mode, test.stat, d)
		if diff := cmp.Diff(test.want, out.String()); diff != "" {
			t.Error(diff)
		}
		if notes.String() != "5 of 5 differences shown; name a path, or raise --limit\n" {
			t.Errorf("%q", notes.String())
		}
	}
}

func TestCommitBefore(t *testing.T) {
	text := func(s string) *string { return &s }
	list := []api.CommitInfo{ // newest first
		{CommitID: "d", ParentVMID: text("v2"), GrandparentCommitID: text("b")}, {CommitID: "c", ParentVMID: text("v1"), GrandparentCommitID: text("a")},
		{CommitID: "b", ParentVMID: text("v1"), GrandparentCommitID: text("a")}, {CommitID: "a"},
	}
	for id, want := range map[string]string{"d": "b", "c": "b", "b": "a", "a": "", "other": ""} {
		got, err := commitBefore(list, id)
		if got != want || (want == "") != fault.Is(err, fault.NotFound) {
			t.Errorf("before %s: %q, %v", id, got, err)
		}
	}
}
