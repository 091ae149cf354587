package buildfs

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vers/internal/fault"
)

const packageScript = `[container]
image = "base"
volumes = { "cache" = "/cache" }
[[commands]]
script_path = "/scripts/a.sh"
[[overlays]]
source = "etc/motd"
destination = "/etc/motd"
[[overlays]]
source = "tree"
destination = "/opt"
[export]
all = true
`

func packageFiles() map[string]string {
	return map[string]string{ScriptName: packageScript, "scripts/a.sh*": "#!/bin/sh\n", "etc/motd": "hello\n", "tree/a/b/c": "c", "tree/run*": "#!/bin/sh\n",
		"cache/x": "x", "unrelated": "no"}
}

// R2, B2: each kind is known by its content, whatever it is called.
func TestKinds(t *testing.T) {
	dir := writeFiles(t, packageFiles())
	must(t, os.Symlink("../run", filepath.Join(dir, "tree/a/link")))
	out := t.TempDir()
	for name, kind := range map[string]Kind{"p.tar": KindTar, "p.tar.gz": KindTarGz, "folder": KindDirectory, "p.TGZ": KindTarGz} {
		packed, err := Pack(t.Context(), filepath.Join(dir, ScriptName), filepath.Join(out, name), KindOfDestination(name), false, CheckOptions{})
		must(t, err)
		if packed.Kind != kind || strings.Join(packed.Files, " ") != "cache etc/motd scripts/a.sh tree" {
			t.Errorf("%s: packed as %+v", name, packed)
		}
	}
	must(t, os.Rename(filepath.Join(out, "p.tar"), filepath.Join(out, "renamed.toml")))
	must(t, os.Rename(filepath.Join(out, "p.TGZ"), filepath.Join(out, "noname")))
	var first string
	for name, kind := range map[string]Kind{"renamed.toml": KindTar, "p.tar.gz": KindTarGz, "folder": KindDirectory, "noname": KindTarGz} {
		p := open(t, filepath.Join(out, name))
		if p.Kind != kind {
			t.Errorf("%s is taken for %s", name, p.Kind)
		}
		_, report, err := p.Check(CheckOptions{})
		must(t, err)
		if len(report.Faults) > 0 {
			t.Errorf("%s:\n%s", name, messages(report.Faults))
		}
		got := tree(t, p.root.Name())
		if first == "" {
			first = got
		}
		if got != first || strings.Contains(got, "unrelated") || !strings.Contains(got, "-rwxr-xr-x tree/run ") || !strings.Contains(got, "tree/a/link -> ../run") {
			t.Errorf("%s holds\n%s\nanother\n%s", name, got, first)
		}
	}
	again := filepath.Join(out, "again.tar.gz")
	_, err := Pack(t.Context(), dir, again, KindTarGz, false, CheckOptions{})
	must(t, err)
	a, _ := os.ReadFile(again)
	b, _ := os.ReadFile(filepath.Join(out, "p.tar.gz"))
	if string(a) != string(b) {
		t.Error("packing twice does not give the same bytes")
	}
}

// What `tar cf x.tar folder` makes has a folder at its top.
func TestPackageInAFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p")
	must(t, os.WriteFile(path, archiveOf(t, tar.Header{Name: "./web/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "./web/build.toml", Linkname: readme}), 0o644))
	p := open(t, path)
	temp := p.temp
	if _, report, err := p.Check(CheckOptions{}); err != nil || len(report.Faults) > 0 {
		t.Errorf("%v %v", report, err)
	}
	must(t, p.Close())
	if _, err := os.Stat(temp); !os.IsNotExist(err) {
		t.Errorf("closing leaves %s (B14)", temp)
	}
}

// T15, B15.
func TestT15OpenErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, data, 0o644))
		return path
	}
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o755))
	whole := gzipped(t, archiveOf(t, tar.Header{Name: "build.toml", Linkname: strings.Repeat("# x\n", 1000)}))
	for path, want := range map[string]struct {
		kind fault.Kind
		text string
	}{
		filepath.Join(dir, "missing.toml"):                                                               {fault.NotFound, "does not exist"},
		filepath.Join(dir, "empty"):                                                                      {fault.NotFound, "has no build.toml"},
		write("x.gz", gzipped(t, []byte("hello"))):                                                       {fault.Invalid, "not of a tar archive"},
		write("cut.tar.gz", whole[:len(whole)-12]):                                                       {fault.Invalid, "damaged"},
		write("none.tar", archiveOf(t, tar.Header{Name: "a/b"})):                                         {fault.NotFound, "has no build.toml"},
		write("big.toml", []byte(strings.Repeat("#", 2<<20))):                                            {fault.Invalid, "larger than"},
		write("twice.tar", archiveOf(t, tar.Header{Name: "build.toml"}, tar.Header{Name: "build.toml"})): {fault.Invalid, "there twice"},
	} {
		p, err := Open(t.Context(), path)
		if err == nil {
			p.Close()
		}
		if fault.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.text) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v (%v)", path, err, fault.KindOf(err))
		}
	}
}

// References are from the package's root, in both spellings, and never leave it, neither by name nor by link.
func TestReferences(t *testing.T) {
	dir := writeFiles(t, packageFiles())
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "out")))
	must(t, os.Symlink("scripts", filepath.Join(dir, "within")))
	p := open(t, dir)
	for reference, want := range map[string]string{"/scripts/a.sh": "scripts/a.sh", "scripts/a.sh": "scripts/a.sh", "./scripts/../etc/motd": "etc/motd", "//etc//motd": "etc/motd", "within/a.sh": "within/a.sh"} {
		if name, _, err := p.stat(reference); err != nil || name != want {
			t.Errorf("%s is %q, %v", reference, name, err)
		}
	}
	for _, reference := range []string{"../x", "/../x", "a/../../x", "out", "/etc/passwd", "x\x00y"} {
		if name, _, err := p.stat(reference); err == nil {
			t.Errorf("%q is taken as %q", reference, name)
		}
	}
}

// T4, T5, B3, B4: files of the host with the same name are neither taken nor touched.
func TestT5PackLeavesTheHostAlone(t *testing.T) {
	host := filepath.Join(t.TempDir(), "motd")
	must(t, os.WriteFile(host, []byte("the host's"), 0o644))
	script := `[container]
image = "base"
[[overlays]]
source = "` + host + `"
destination = "/etc/motd"
`
	dir := writeFiles(t, map[string]string{ScriptName: script, host: "the package's"})
	out := filepath.Join(t.TempDir(), "out")
	_, err := Pack(t.Context(), dir, out, KindDirectory, false, CheckOptions{})
	must(t, err)
	if data, _ := os.ReadFile(host); string(data) != "the host's" {
		t.Errorf("the host's file is now %q", data)
	}
	if data, _ := os.ReadFile(filepath.Join(out, host)); string(data) != "the package's" {
		t.Errorf("the package holds %q", data)
	}
	must(t, os.Remove(filepath.Join(dir, host)))
	if _, err := Pack(t.Context(), dir, out+"2", KindDirectory, false, CheckOptions{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "is not in the package") {
		t.Errorf("without the package's file: %v", err)
	}
	if _, err := os.Stat(out + "2"); !os.IsNotExist(err) {
		t.Error("a refused pack leaves something behind")
	}
}

func TestPackRefuses(t *testing.T) {
	dir := writeFiles(t, packageFiles())
	script := filepath.Join(dir, ScriptName)
	file := filepath.Join(t.TempDir(), "x.tar")
	must(t, os.WriteFile(file, []byte("mine"), 0o644))
	for _, tt := range []struct {
		dest string
		kind Kind
		want fault.Kind
		text string
	}{
		{file, KindTar, fault.Conflict, "exists already"},
		{filepath.Dir(file), KindDirectory, fault.Conflict, "not empty"},
		{file + ".toml", KindScript, fault.Invalid, "holds the script alone"},
		{filepath.Join(dir, "tree", "out"), KindDirectory, fault.Invalid, "within"},
		{filepath.Join(dir, "tree", "out.tar"), KindTar, fault.Invalid, "within"},
	} {
		_, err := Pack(t.Context(), script, tt.dest, tt.kind, false, CheckOptions{})
		if !fault.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s to %s: %v", tt.kind, tt.dest, err)
		}
	}
	if data, _ := os.ReadFile(file); string(data) != "mine" {
		t.Error("a file was overwritten")
	}
	_, err := Pack(t.Context(), script, file, KindTar, true, CheckOptions{})
	must(t, err)
}

// Nothing gets outside of the folder, and nothing of a refused archive stays in it.
func TestUnpackStaysInside(t *testing.T) {
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}
	}
	for name, headers := range map[string][]tar.Header{
		"dots":          {{Name: "../x", Linkname: "x"}},
		"absolute dots": {{Name: "/../../x", Linkname: "x"}},
		"through link":  {link("a", "/tmp"), {Name: "a/vers-escape", Linkname: "x"}},
		"through dots":  {link("a", ".."), {Name: "a/vers-escape", Linkname: "x"}},
		"hard link":     {{Name: "a", Linkname: "../../etc/passwd", Typeflag: tar.TypeLink}},
		"hard via link": {link("a", "/etc"), {Name: "b", Linkname: "a/passwd", Typeflag: tar.TypeLink}},
		"device":        {{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"pipe":          {{Name: "d", Typeflag: tar.TypeFifo}},
	} {
		t.Run(name, func(t *testing.T) {
			outer := t.TempDir()
			path := filepath.Join(t.TempDir(), "p.tar")
			must(t, os.WriteFile(path, archiveOf(t, append([]tar.Header{{Name: "first", Linkname: "1"}}, headers...)...), 0o644))
			err := Unpack(t.Context(), path, filepath.Join(outer, "in"))
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), path) {
				t.Errorf("error: %v", err)
			}
			if left := tree(t, outer); left != "" {
				t.Errorf("it leaves\n%s", left)
			}
		})
	}
	// A link that leads out is content; it is kept as it is and never followed.
	path := filepath.Join(t.TempDir(), "p.tar")
	must(t, os.WriteFile(path, archiveOf(t, link("etc/localtime", "/usr/share/zoneinfo/UTC"), tar.Header{Name: "/abs", Linkname: "x"}), 0o644))
	dir := t.TempDir()
	must(t, Unpack(t.Context(), path, dir))
	if got := tree(t, dir); !strings.Contains(got, "etc/localtime -> /usr/share/zoneinfo/UTC") || !strings.Contains(got, "-rw-r--r-- abs x") {
		t.Errorf("unpacked\n%s", got)
	}
	if err := Unpack(t.Context(), path, dir); !fault.Is(err, fault.Conflict) {
		t.Errorf("into a folder with content: %v", err)
	}
	for _, other := range []string{dir, filepath.Join(dir, "abs")} {
		if err := Unpack(t.Context(), other, filepath.Join(dir, "new")); !fault.Is(err, fault.Invalid) {
			t.Errorf("unpack of %s: %v", other, err)
		}
	}
}
