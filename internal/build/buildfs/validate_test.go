package buildfs

import (
	"strings"
	"testing"

	"vers/internal/fault"
	"vers/internal/rootfs"
)

// R1: what the original takes is taken, in its own spelling of values and in lower case.
func TestOriginalScripts(t *testing.T) {
	s, report := check(t, readme, nil, CheckOptions{})
	if got := messages(append(report.Faults, report.Warnings...)); got != "" {
		t.Errorf("the original's example:\n%s", got)
	}
	if s.Filesystem.kind() != rootfs.Ext4 || s.Filesystem.SizeMiB != 250 || s.Container.Engine != "docker" || !s.Container.Rootful ||
		s.Container.Image.String() != "docker.io/library/debian:bookworm-slim" || len(s.Commands) != 1 || len(s.Export.Directories.Include) != 8 {
		t.Errorf("read as %+v", s)
	}
	if strings.HasPrefix(s.Commands[0].ScriptInline, "\n") || *s.Overlays[0].SourceInline != "nameserver 8.8.8.8\n" {
		t.Errorf("inline texts are %q and %q", s.Commands[0].ScriptInline, *s.Overlays[0].SourceInline)
	}
	all := `
[filesystem]
type = "Xfs"
size_mib = 512
block_size_mib = 4
dd_args = ["conv=notrunc"]
mkfs_args = ["-f"]
[container]
engine = "podman"
image = { name = "debian", tag = "12" }
rootful = false
wait_timeout_s = 5
connection_uri = "unix:///run/podman/podman.sock"
volumes = { "/data" = "/mnt/data" }
env = { A = "1" }
hostname = "builder"
oci_runtime = "crun"
timeout = 600
cap_add = ["NET_ADMIN"]
cap_drop = ["MKNOD"]
[[commands]]
command = "apt-get update"
uid = 1000
gid = 1000
working_dir = "/srv"
privileged = true
env = { B = "2" }
[[commands]]
script_path = "/scripts/a.sh"
[[overlays]]
source = "/files"
destination = "/opt"
is_directory = true
mounted = true
[export.files]
include = ["/etc/passwd"]
create = ["/etc/empty"]
`
	files := map[string]string{"scripts/a.sh*": "#!/bin/sh\n", "files/x": "x", "data/y": "y"}
	s, report = check(t, all, files, CheckOptions{})
	if len(report.Faults) > 0 {
		t.Errorf("every key of the original:\n%s", messages(report.Faults))
	}
	if got := messages(report.Warnings); got != ScriptName+":6:1: filesystem.dd_args: not used: the file is made without dd" {
		t.Errorf("warnings:\n%s", got)
	}
	if *s.Commands[0].UID != 1000 || !s.Overlays[0].Mounted || s.Container.Volumes["/data"] != "/mnt/data" || *s.Container.Timeout != 600 {
		t.Errorf("read as %+v", s)
	}
}

func TestAddedKeys(t *testing.T) {
	s, report := check(t, `
version = 1
reproducible = false
[filesystem]
type = "erofs"
size_mib = "auto"
headroom_mib = 10
uuid = "01234567-89ab-cdef-0123-456789abcdef"
label = "root"
[container]
engine = "auto"
image = "localhost:5000/base@sha256:`+strings.Repeat("a", 64)+`"
network = "none"
[[commands]]
name = "list"
command = ["ls", "-l", "a b"]
timeout_s = 5
allow_failure = true
[[overlays]]
source_inline = ""
destination = "/etc/empty"
mode = 0o4755
uid = 1
gid = 2
if_exists = "skip"
[[overlays]]
source_inline = "x"
destination = "/etc/x"
mode = "0640"
[export]
all = true
exclude = ["*.pyc", "/var/cache/**"]
[guest]
agent = false
ssh = false
init = "/usr/bin/tini"
`, nil, CheckOptions{})
	if got := messages(append(report.Faults, report.Warnings...)); got != "" {
		t.Fatalf("problems:\n%s", got)
	}
	switch {
	case s.Repro(), s.Guest.Prepared(), s.Filesystem.headroom() != 10, s.Filesystem.SizeMiB != 0,
		s.Container.Image.Name != "localhost:5000/base", len(s.Commands[0].Command.Args) != 3,
		s.Overlays[0].Mode.Bits != 0o4755, s.Overlays[1].Mode.Bits != 0o640, s.Overlays[0].IfExists != "skip", s.Overlays[1].IfExists != "replace":
		t.Errorf("read as %+v", s)
	}
}

// T11 and B26: everything that is wrong is said in one run, with its place.
func TestT11AllFaultsAtOnce(t *testing.T) {
	_, report := check(t, `[filesystem]
type = "Ext5"
sise_mib = 100
block_size_mib = 0

[container]
image = { name = "debian", tgg = "x" }
cap_add = "ALL"

[[commands]]
command = "a"
script_inline = "#!/bin/sh"

[[commands]]
script_path = "../../etc/passwd"
timeout_s = 1.5

[[commands]]
env = { A = 1 }

[[overlays]]
source = "files"
source_inline = "x"
destination = "/../x"
mode = "0999"

[[overlays]]
destination = "/y"

[export]
exclude = ["[a"]
`, map[string]string{"other": "x"}, CheckOptions{})
	want := `build.toml:2:1: filesystem.type: "Ext5" is not one of Ext4, Btrfs, Squashfs, Vfat, Xfs, Erofs
build.toml:3:1: filesystem.sise_mib: unknown key; did you mean size_mib?
build.toml:4:1: filesystem.block_size_mib: 0 is too small: at least 1
build.toml:7:28: container.image.tgg: unknown key; did you mean tag?
build.toml:8:1: container.cap_add: must be a list, not a string
build.toml:10:3: commands[0]: has command and script_inline; exactly one of them says what runs
build.toml:15:1: commands[1].script_path: "../../etc/passwd" leads out of the package
build.toml:16:1: commands[1].timeout_s: must be a whole number, not a fraction
build.toml:18:3: commands[2]: has none of command, script_inline, script_path
build.toml:19:9: commands[2].env.A: must be a string, not a whole number
build.toml:21:3: overlays[0]: has source and source_inline; exactly one of them gives the content
build.toml:22:1: overlays[0].source: "files" is not in the package
build.toml:24:1: overlays[0].destination: "/../x" leads out of the file system
build.toml:25:1: overlays[0].mode: "0999" is no mode: octal digits, such as "0755"
build.toml:27:3: overlays[1]: has neither source nor source_inline
build.toml:31:12: export.exclude[0]: "[a" is not a pattern: syntax error in pattern`
	if got := messages(report.Faults); got != want {
		t.Errorf("faults:\n%s\nwant:\n%s", got, want)
	}
	if err := report.Err(); !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "16 faults:\n") {
		t.Errorf("as an error: %v", err)
	}
}

func TestSingleFaults(t *testing.T) {
	const container = "[container]\nimage = \"a\"\n"
	for _, tt := range []struct{ name, script, want string }{
		{"syntax", "[container\n", "build.toml:1:11: not valid TOML"},
		{"not text", "\xff\xfe", "build.toml: is neither a build script nor an archive"},
		{"no container", "[export]\nall = true\n", "build.toml: container is missing"},
		{"no image", "[container]\n", "build.toml:1:2: container: image is missing"},
		{"no image name", "[container]\nimage = {tag = 'x'}", "container.image: name is missing"},
		{"no such version", container + "[export]\nall=true\n" + "[filesystem]\nsize_mib = 0", "build.toml:6:1: filesystem.size_mib: 0 is no size in MiB"},
		{"size in words", container + "[filesystem]\nsize_mib = 'big'", `"big" is no size in MiB: a number, or "auto"`},
		{"blocks", container + "[filesystem]\nsize_mib = 10\nblock_size_mib = 3", "build.toml:5:1: filesystem.block_size_mib: 3 does not divide size_mib, which is 10"},
		{"vfat", container + "[filesystem]\ntype = 'Vfat'", "vfat holds no owners, modes and links"},
		{"twice", container + "[container]\n", "build.toml:3:2: "},
		{"podman by http", "[container]\nengine='Podman'\nconnection_uri='http://x'\nimage='a'", "container.connection_uri: \"http://x\" is not a socket"},
		{"files in a script alone", container + "[[commands]]\nscript_path = '/a.sh'", "put both in a folder"},
		{"Windows", container + "[[commands]]\nscript_inline = \"#!/bin/sh\\r\\nls\\r\\n\"", "has line ends of Windows"},
		{"a file at /", container + "[[overlays]]\nsource_inline=''\ndestination='//'", "/ is a folder; a file needs a name"},
		{"file and folder", container + "[export.files]\ncreate=['/x']\n[export.directories]\ncreate=['x/']", `export.files.create[0]: "/x" is made as a folder, too`},
		{"boot of squashfs", container + "[filesystem]\ntype='squashfs'\n[checks]\nboot=true", "VMs boot from ext4 only"},
		{"future version", "version = 2\n" + container, "build.toml:1:1: version: 2 is not known here"},
		{"relative folder", container + "[[commands]]\ncommand='x'\nworking_dir='y'", `commands[0].working_dir: "y" is not absolute`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, report := check(t, tt.script, nil, CheckOptions{})
			if got := messages(report.Faults); len(report.Faults) != 1 || !strings.Contains(got, tt.want) {
				t.Errorf("faults:\n%s\nwant one with:\n%s", got, tt.want)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	_, report := check(t, `[container]
image = "a"
[[commands]]
script_inline = "ls"
gid = 5
[[overlays]]
source_inline = "x"
destination = "etc/x"
[[overlays]]
source_inline = "y"
destination = "/etc/./x"
`, nil, CheckOptions{})
	if len(report.Faults) > 0 {
		t.Errorf("faults:\n%s", messages(report.Faults))
	}
	want := `build.toml: export: nothing of the container is exported; name folders in export.directories.include, or say export.all = true
build.toml:4:1: commands[0].script_inline: has no interpreter in its first line (#!/bin/sh); /bin/sh runs it
build.toml:5:1: commands[0].gid: counts only with uid
build.toml:8:1: overlays[0].destination: "etc/x" is not absolute; it is taken from /
build.toml:11:1: overlays[1].destination: overlays[0] has the same destination; this one wins`
	if got := messages(report.Warnings); got != want {
		t.Errorf("warnings:\n%s\nwant:\n%s", got, want)
	}
}

func TestSettings(t *testing.T) {
	o := CheckOptions{Set: []string{"filesystem.size_mib=512", "container.image.tag=trixie", "commands.0.name=first", "container.env.N=7",
		"export.all=true", "filesystem.label=two words"}}
	s, report := check(t, strings.Replace(readme, "[export.directories]", "[export.directories]\n", 1), nil, o)
	if len(report.Faults) > 0 {
		t.Fatalf("faults:\n%s", messages(report.Faults))
	}
	if s.Filesystem.SizeMiB != 512 || s.Container.Image.Tag != "trixie" || s.Commands[0].Name != "first" || s.Container.Env["N"] != "7" || !s.Export.All || s.Filesystem.Label != "two words" {
		t.Errorf("read as %+v", s)
	}
	p := open(t, writeFiles(t, map[string]string{ScriptName: readme}))
	for _, bad := range []string{"x", "=1", "commands.3.name=x", "filesystem.type.x=1"} {
		if _, _, err := p.Check(CheckOptions{Set: []string{bad}}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "--set "+bad) {
			t.Errorf("--set %s: %v", bad, err)
		}
	}
	if _, report, err := p.Check(CheckOptions{Set: []string{"filesystem.sise=1"}}); err != nil || len(report.Faults) != 1 {
		t.Errorf("an unknown key by --set: %v, %v", report, err)
	}
}

func TestPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"*.pyc", "usr/lib/a.pyc", true},
		{"*.pyc", "a.pyc", true},
		{"*.pyc", "a.py", false},
		{"/tmp", "tmp/x/y", true},
		{"/tmp", "var/tmp", false},
		{"tmp", "var/tmp/x", true},
		{"/var/cache/*", "var/cache", false},
		{"/var/cache/*", "var/cache/apt/x", true},
		{"var/**/log", "var/a/b/log", true},
		{"var/**/log", "var/log/x", true},
		{"var/**/log", "var/lag", false},
		{"/usr/share/**", "usr/share", false},
		{"/usr/share/**", "usr/share/doc", true},
		{"/usr/sh?re", "usr/share", true},
	} {
		p, err := compilePattern(tt.pattern)
		must(t, err)
		if got := p.match(tt.name); got != tt.want {
			t.Errorf("%s matches %s: %v", tt.pattern, tt.name, got)
		}
	}
	for _, bad := range []string{"", "/", "a[", "../x", "a//b"} {
		if _, err := compilePattern(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestExample(t *testing.T) {
	_, report := check(t, Example, nil, CheckOptions{})
	if got := messages(append(report.Faults, report.Warnings...)); got != "" {
		t.Errorf("what init writes:\n%s", got)
	}
}
