package source_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"vers/internal/build/source"
	"vers/internal/fault"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// archive makes one of entries: "dir/" a folder, "name=text" a file, "name->target" a link, "name=>other" a hard link.
func archive(t testing.TB, entries ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{Mode: 0o644, Uid: 7, Gid: 8, ModTime: time.Unix(1e9, 0)}
		var text string
		if name, target, ok := strings.Cut(e, "->"); ok {
			h.Name, h.Linkname, h.Typeflag = name, target, tar.TypeSymlink
		} else if name, target, ok := strings.Cut(e, "=>"); ok {
			h.Name, h.Linkname, h.Typeflag = name, target, tar.TypeLink
		} else if name, content, ok := strings.Cut(e, "="); ok {
			h.Name, h.Typeflag, h.Size, text = name, tar.TypeReg, int64(len(content)), content
		} else {
			h.Name, h.Typeflag, h.Mode = e, tar.TypeDir, 0o700
		}
		must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, text)
		must(t, err)
	}
	must(t, w.Close())
	return out.Bytes()
}

func read(t testing.TB, entries ...string) *source.Tree {
	t.Helper()
	tree, err := source.Read(t.Context(), bytes.NewReader(archive(t, entries...)), t.TempDir(), source.Limits{})
	must(t, err)
	t.Cleanup(func() { tree.Close() })
	return tree
}

// list reads a selection's archive back.
func list(t testing.TB, s source.Selection) []string {
	t.Helper()
	var out bytes.Buffer
	must(t, s.WriteTar(&out))
	var names []string
	r := tar.NewReader(&out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		must(t, err)
		text, err := io.ReadAll(r)
		must(t, err)
		switch h.Typeflag {
		case tar.TypeSymlink:
			names = append(names, h.Name+"->"+h.Linkname)
		case tar.TypeDir:
			names = append(names, h.Name)
		default:
			names = append(names, h.Name+"="+string(text))
		}
	}
}

var options = source.Options{Where: "the context"}

func TestSelect(t *testing.T) {
	tree := read(t, "./", "a=1", "ab=2", "b/", "b/c=3", "b/d/", "b/d/e=4", "b/l->c", "to-b->b", "up->../../b/c", "abs->/a", "loop->loop", "gone->nothing", "hard=>b/c", "[x]=5", "a=6", "deep/made/here=7")
	for _, tt := range []struct {
		sources []string
		into    bool
		want    string
		single  string
	}{
		{[]string{"a"}, false, ".=6", "a"},
		{[]string{"/a"}, true, "./ a=6", ""},
		{[]string{"a*"}, false, "./ a=6 ab=2 abs=6", ""},
		{[]string{"b"}, false, "./ c=3 d/ d/e=4 l->c", ""},
		{[]string{"to-b"}, false, "./ c=3 d/ d/e=4 l->c", ""},
		{[]string{"to-b/d/*"}, true, "./ e=4", ""},
		{[]string{"up"}, false, ".=3", "up"},
		{[]string{"b/l", "hard"}, true, "./ hard=3 l=3", ""},
		{[]string{"[x]"}, true, "./ [x]=5", ""},
		{[]string{"[ab]"}, true, "./ a=6 c=3 d/ d/e=4 l->c", ""},
		{[]string{"deep"}, true, "./ made/ made/here=7", ""},
		{[]string{"b/d/../c"}, true, "./ c=3", ""},
		{[]string{"*/d/e"}, true, "./ e=4", ""},
	} {
		s, err := tree.Select(tt.sources, tt.into, options)
		must(t, err)
		if got := strings.Join(list(t, s), " "); got != tt.want || s.Single != tt.single {
			t.Errorf("%q: %q %q, want %q %q", tt.sources, got, s.Single, tt.want, tt.single)
		}
	}
	for pattern, want := range map[string]string{
		"nothing": `"nothing" is not in the context`, "../a": "leads out of the context", "b/../../a": "leads out", "loop": "more than 40 symbolic links",
		"gone": "symbolic link to nothing", "a/b": "is not in", "[": "is no pattern", "x*": "is not in",
	} {
		if _, err := tree.Select([]string{pattern}, true, options); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", pattern, want, err)
		}
	}
	all, err := tree.Select([]string{"."}, true, options)
	if err == nil && len(list(t, all)) < 10 {
		t.Error(list(t, all))
	}
	must(t, err)
	clash := read(t, "x/a=1", "y/a/b=2")
	if _, err := clash.Select([]string{"x", "y"}, true, options); err == nil || !strings.Contains(err.Error(), `"a" is a file in one source and a folder in another`) {
		t.Error(err)
	}
}

// Only what COPY writes is in the hash: no times, and no owners unless they are kept.
func TestHash(t *testing.T) {
	build := func(change func(*tar.Header)) *source.Tree {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		h := &tar.Header{Name: "f", Mode: 0o644, Size: 1, ModTime: time.Unix(1, 0), Uid: 1, Format: tar.FormatPAX}
		change(h)
		must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, "xy"[:h.Size])
		must(t, err)
		must(t, w.Close())
		tree, err := source.Read(t.Context(), &out, t.TempDir(), source.Limits{})
		must(t, err)
		t.Cleanup(func() { tree.Close() })
		return tree
	}
	hash := func(o source.Options, change func(*tar.Header)) [32]byte {
		s, err := build(change).Select([]string{"."}, true, o)
		must(t, err)
		return s.Hash()
	}
	base := hash(options, func(*tar.Header) {})
	kept := source.Options{Where: "stage", KeepOwners: true}
	mode := fs.FileMode(0o600)
	for what, tt := range map[string]struct {
		o      source.Options
		change func(*tar.Header)
		same   bool
	}{
		"time":      {options, func(h *tar.Header) { h.ModTime = time.Unix(2, 0) }, true},
		"owner":     {options, func(h *tar.Header) { h.Uid = 2 }, true},
		"kept":      {kept, func(*tar.Header) {}, false},
		"name":      {options, func(h *tar.Header) { h.Name = "g" }, false},
		"mode":      {options, func(h *tar.Header) { h.Mode = 0o755 }, false},
		"set mode":  {source.Options{Where: "x", Mode: &mode}, func(*tar.Header) {}, false},
		"size":      {options, func(h *tar.Header) { h.Size = 2 }, false},
		"attribute": {options, func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b"} }, false},
	} {
		if got := hash(tt.o, tt.change); (got == base) != tt.same {
			t.Errorf("%s: same %v", what, got == base)
		}
	}
}

func TestIgnore(t *testing.T) {
	tree := read(t, "Dockerfile=FROM a", ".dockerignore=*.log\nDockerfile\nnode_modules\n!keep.log\nd\n!d/e/f\n# no\n", "x.log=1", "keep.log=2", "node_modules/", "node_modules/a=3", "sub/y.log=4", "d/a=5", "d/e/f=6", "d/e/g=7", "src=8")
	must(t, tree.Ignore("Dockerfile"))
	s, err := tree.Select([]string{"."}, true, options)
	must(t, err)
	want := []string{"./", ".dockerignore=*.log\nDockerfile\nnode_modules\n!keep.log\nd\n!d/e/f\n# no\n", "d/", "d/e/", "d/e/f=6", "keep.log=2", "src=8", "sub/", "sub/y.log=4"}
	if d := cmp.Diff(want, list(t, s)); d != "" {
		t.Error(d)
	}
	if _, err := tree.Select([]string{"node_modules/a"}, true, options); err == nil || !strings.Contains(err.Error(), "leaves it out") {
		t.Error(err)
	}
	if data, err := tree.File("Dockerfile", 100); err != nil || string(data) != "FROM a" {
		t.Errorf("%q %v", data, err)
	}
	if _, err := tree.File("Dockerfile", 2); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := tree.File("other", 2); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	own := read(t, ".dockerignore=a", "web.Dockerfile.dockerignore=b", "a=1", "b=2")
	must(t, own.Ignore("web.Dockerfile"))
	if _, err := own.Select([]string{"a"}, true, options); err != nil {
		t.Error(err)
	}
	if _, err := own.Select([]string{"b"}, true, options); err == nil {
		t.Error("a Dockerfile's own ignore file is not used")
	}
	if err := read(t, ".dockerignore=[a", "x=1").Ignore("Dockerfile"); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
}

// What wants out of its folder, or more than there is, is refused, and nothing of it is left.
func TestHostile(t *testing.T) {
	dir := t.TempDir()
	device := func(flag byte) []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		must(t, w.WriteHeader(&tar.Header{Name: "null", Typeflag: flag, Devmajor: 1, Devminor: 3}))
		must(t, w.Close())
		return out.Bytes()
	}
	limits := source.Limits{Bytes: 100, Entries: 20}
	many := []string{}
	for i := range 30 {
		many = append(many, fmt.Sprintf("f%d=", i))
	}
	for what, tt := range map[string]struct {
		data []byte
		kind fault.Kind
		says string
	}{
		"parent":          {archive(t, "../x=1"), fault.Invalid, "leads out of its folder"},
		"parent inside":   {archive(t, "a/../../x=1"), fault.Invalid, "leads out of its folder"},
		"absolute":        {archive(t, "/etc/x=1"), fault.Invalid, "absolute name"},
		"through a link":  {archive(t, "l->/etc", "l/passwd=x"), fault.Invalid, "which is no folder in it"},
		"through a file":  {archive(t, "l=1", "l/passwd=x"), fault.Invalid, "which is no folder in it"},
		"hard link out":   {archive(t, "l=>../../etc/passwd"), fault.Invalid, "leads out"},
		"hard link":       {archive(t, "l=>etc/passwd"), fault.Invalid, "is no file in it"},
		"folder and file": {archive(t, "a/b=1", "a=2"), fault.Invalid, "again as something else"},
		"device":          {device(tar.TypeChar), fault.Invalid, "is a device"},
		"pipe":            {device(tar.TypeFifo), fault.Invalid, "is a device"},
		"no archive":      {[]byte(strings.Repeat("no tar ", 200)), fault.Invalid, "cannot be read"},
		"cut":             {archive(t, "a="+strings.Repeat("x", 90))[:550], fault.Invalid, "cannot be read"},
		"bytes":           {archive(t, "a="+strings.Repeat("x", 60), "b="+strings.Repeat("x", 60)), fault.Exhausted, "more than"},
		"entries":         {archive(t, many...), fault.Exhausted, "more than 20 files"},
		"long name":       {archive(t, strings.Repeat("x", 300)+"=1"), fault.Invalid, "more than 255 bytes"},
		"deep":            {archive(t, strings.Repeat("d/", 30)+"x=1"), fault.Exhausted, "more than 20 files"},
	} {
		tree, err := source.Read(t.Context(), bytes.NewReader(tt.data), dir, limits)
		if !fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: want %q, got %v", what, tt.says, err)
		}
		if err == nil {
			tree.Close()
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
	var compressed bytes.Buffer
	z := gzip.NewWriter(&compressed)
	_, err := z.Write(archive(t, "a="+strings.Repeat("x", 1<<20)))
	must(t, errors.Join(err, z.Close()))
	if _, err := source.Read(t.Context(), bytes.NewReader(compressed.Bytes()), dir, limits); !fault.Is(err, fault.Exhausted) {
		t.Errorf("a bomb: %v", err)
	}
	tree, err := source.Read(t.Context(), &compressed, dir, source.Limits{})
	must(t, err)
	defer tree.Close()
	if data, err := tree.File("a", 2<<20); err != nil || len(data) != 1<<20 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	var small bytes.Buffer
	zst, err := zstd.NewWriter(&small)
	must(t, err)
	_, err = zst.Write(archive(t, "a=zstd"))
	must(t, errors.Join(err, zst.Close()))
	other, err := source.Read(t.Context(), &small, dir, source.Limits{})
	must(t, err)
	defer other.Close()
	if data, err := other.File("a", 10); string(data) != "zstd" {
		t.Errorf("%q, %v", data, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := source.Read(ctx, bytes.NewReader(archive(t, "a=1")), dir, limits); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// No archive makes a file of ours, leaves one behind or is selected from outside of its tree.
func FuzzRead(f *testing.F) {
	for _, seed := range [][]string{{"a=1"}, {"a/", "a/b=1", "l->a"}, {"../x=1"}, {"l->/", "l/x=1"}, {"a=1", "b=>a"}} {
		f.Add(archive(f, seed...), "*")
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, pattern string) {
		tree, err := source.Read(t.Context(), bytes.NewReader(data), dir, source.Limits{Bytes: 1 << 20, Entries: 1000})
		if err == nil {
			defer tree.Close()
			_ = tree.Ignore("Dockerfile")
			if s, err := tree.Select([]string{pattern}, true, options); err == nil {
				s.Hash()
				for _, name := range list(t, s) {
					if strings.HasPrefix(name, "/") || strings.HasPrefix(name, "../") {
						t.Errorf("selected %q", name)
					}
				}
			}
		} else if fault.KindOf(err) == fault.Internal {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left: %v %v", left, err)
		}
	})
}
