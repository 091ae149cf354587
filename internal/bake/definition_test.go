package bake

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"vers/images"
	"vers/internal/build/dockerfile"
)

// The definitions that vers comes with are whole, and come in an order in which each finds what it is made of.
func TestSupported(t *testing.T) {
	all, err := names(images.Supported)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"node", "python", "rust", "go", "pi-agent", "cc-agent"}; !slices.Equal(all, want) {
		t.Fatalf("images are %v", all)
	}
	for i, name := range all {
		d, err := readDefinition(images.Supported, name)
		if err != nil {
			t.Fatal(err)
		}
		if len(d.checks) != 2 || d.checks[1] == "" || *d.config.MemSizeMiB < 1024 {
			t.Errorf("%s: %d checks, %d MiB", name, len(d.checks), *d.config.MemSizeMiB)
		}
		for _, base := range d.bases() {
			if repo, _, isTag := strings.Cut(base, ":"); isTag && !slices.Contains(all[:i], repo) {
				t.Errorf("%s is made with %s, which is not baked before it", name, repo)
			}
		}
		composed, err := d.compose(&Host{}, day)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := dockerfile.Parse(composed.files[composedName].data)
		if err != nil {
			t.Fatalf("%s, composed: %v\n%s", name, err, composed.files[composedName].data)
		}
		steps := parsed.Stages[len(parsed.Stages)-1].Steps
		if last := steps[len(steps)-1]; last.Name != dockerfile.Run || !strings.Contains(last.Script, leaveName) {
			t.Errorf("%s does not end with taking the host's settings out, but with %s", name, last.Text)
		}
	}
}

func TestCompose(t *testing.T) {
	d, err := readDefinition(fstest.MapFS{"x/Dockerfile": {Data: []byte("FROM default AS tools\nRUN a\nFROM tools AS more\nFROM default\nCOPY --from=more /a /a\nFROM other:latest\n")}}, "x")
	if err != nil {
		t.Fatal(err)
	}
	if got := d.bases(); !slices.Equal(got, []string{"default", "other:latest"}) {
		t.Errorf("bases are %v", got)
	}
	composed, err := d.compose(&Host{AptSources: []string{"deb mirror bookworm main"}, CAs: map[string][]byte{"ca-0.crt": []byte("certificate")}}, day)
	if err != nil {
		t.Fatal(err)
	}
	host := func(base, name string) string {
		return "FROM " + base + " AS " + name + "\nARG VERS_BAKED=2026-11-21\nCOPY .vers-host/ /var/lib/vers-host/\nRUN sh /var/lib/vers-host/enter\n"
	}
	want := host("default", "vers-host-0") + host("other:latest", "vers-host-1") +
		"FROM vers-host-0 AS tools\nRUN a\nFROM tools AS more\nFROM vers-host-0\nCOPY --from=more /a /a\nFROM vers-host-1\n\nRUN sh /var/lib/vers-host/leave\n"
	if got := string(composed.files[composedName].data); got != want {
		t.Errorf("composed:\n%s", got)
	}
	if got := string(composed.files[".vers-host/apt.conf"].data); !strings.Contains(got, `Dir::Etc::SourceList "/var/lib/vers-host/sources.list";`) {
		t.Errorf("apt.conf:\n%s", got)
	}
	if got := string(composed.files[".vers-host/npmrc"].data); !strings.Contains(got, "cafile=") {
		t.Errorf("npmrc:\n%s", got)
	}
}

func TestMark(t *testing.T) {
	read := func(text string) definition {
		d, err := readDefinition(fstest.MapFS{"x/Dockerfile": {Data: []byte(text)}}, "x")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	one := read("FROM default\n").mark(map[string]string{"default": "a"})
	for what, other := range map[string]string{
		"another definition": read("FROM default\nRUN x\n").mark(map[string]string{"default": "a"}),
		"another base":       read("FROM default\n").mark(map[string]string{"default": "b"}),
	} {
		if other == one {
			t.Errorf("%s has the same mark", what)
		}
	}
}

func TestNoPasswords(t *testing.T) {
	h := &Host{}
	for value, want := range map[string]bool{
		"http://proxy.example:3128": true, `Acquire::http::Proxy "http://proxy.example:3128/";`: true, "https://proxy.golang.org,direct": true,
		"http://user:secret@proxy.example:3128": false, `Acquire::http::Proxy "http://user@proxy/";`: false,
		"deb https://token:x@mirror.example/debian bookworm main": false,
	} {
		if got := h.public("setting", value); got != want {
			t.Errorf("%s: %v", value, got)
		}
	}
	if len(h.Warnings) != 3 || strings.Contains(strings.Join(h.Warnings, " "), "secret") {
		t.Errorf("warnings: %q", h.Warnings)
	}
}

func TestReadHost(t *testing.T) {
	t.Setenv("NPM_CONFIG_REGISTRY", "http://user:secret@npm.example/")
	t.Setenv("http_proxy", "http://proxy.example:3128")
	t.Setenv("GOPROXY", "https://go.example,direct")
	h, err := ReadHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if h.NPMRegistry != "" || h.Proxies["http_proxy"] != "http://proxy.example:3128" || h.GoEnv["GOPROXY"] != "https://go.example,direct" || len(h.AptSources) != 3 {
		t.Errorf("host: %+v", h)
	}
	for name, data := range h.files() {
		if strings.Contains(string(data), "secret") {
			t.Errorf("a password is in %s", name)
		}
	}
}
