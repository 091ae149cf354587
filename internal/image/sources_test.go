package image

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHostArchives(t *testing.T) {
	usual := archives{"http://deb.debian.org/debian", "http://deb.debian.org/debian-security"}
	for name, tt := range map[string]struct {
		files map[string]string
		want  archives
	}{
		"none": {nil, usual},
		"one line each": {map[string]string{"sources.list": "# deb http://old.test/debian bookworm main\n" +
			"deb-src http://src.test/debian bookworm main\ndeb [arch=amd64 signed-by=/k] http://a.test/debian bookworm main contrib\n" +
			"deb http://a.test/debian-security bookworm-security main # comment\n"},
			archives{"http://a.test/debian", "http://a.test/debian-security"}},
		"deb822": {map[string]string{"sources.list.d/debian.sources": "Types: deb deb-src\nURIs: https://b.test/debian\nSuites: trixie trixie-updates\n" +
			"Components: main\nSigned-By:\n -----BEGIN\n .\n\n# comment\nTypes: deb\nURIs: https://b.test/debian-security\nSuites: trixie-security\nComponents: main\n"},
			archives{"https://b.test/debian", "https://b.test/debian-security"}},
		"disabled, and other vendors": {map[string]string{
			"sources.list.d/off.sources": "Enabled: no\nTypes: deb\nURIs: http://off.test/debian\nSuites: bookworm\nComponents: main\n",
			"sources.list.d/vendor.list": "deb http://vendor.test/debian stable main\ndeb http://vendor.test/apt bookworm main\n"}, usual},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range tt.files {
				path := filepath.Join(dir, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := hostArchives(dir); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzParseSources(f *testing.F) {
	f.Add("deb [a=b] http://a.test/debian bookworm main", false)
	f.Add("Types: deb\nURIs: x\nSuites: y\nComponents: z\n cont\n\n", true)
	f.Add(" starts with a continuation", true)
	f.Fuzz(func(t *testing.T, text string, deb822 bool) {
		for _, e := range parseSources([]byte(text), deb822) {
			if e.uri == "" || e.suite == "" || e.component == "" {
				t.Errorf("entry with an empty part: %+v", e)
			}
		}
	})
}

func TestFilterAptOptions(t *testing.T) {
	dump := "Acquire::http::Proxy \"http://p.test:1\";\nAcquire::Check-Valid-Until \"false\";\nAcquire::Languages:: \"none\";\n" +
		"Acquire::AllowInsecureRepositories \"0\";\nAPT::Architecture \"amd64\";\n"
	want := []string{`Acquire::http::Proxy "http://p.test:1";`, `Acquire::Check-Valid-Until "false";`}
	if diff := cmp.Diff(want, filterAptOptions([]byte(dump))); diff != "" {
		t.Error(diff)
	}
}

func TestParseDependency(t *testing.T) {
	record := "Package: linux-image-cloud-amd64\nVersion: 6.1\nPre-Depends: linux-image-no\nDepends: foo (>= 1), linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2) | x\n"
	if got := parseDependency([]byte(record), "linux-image-"); got != "linux-image-6.1.0-56-cloud-amd64" {
		t.Errorf("got %q", got)
	}
	if got := parseDependency([]byte("Package: x\n"), "linux-image-"); got != "" {
		t.Errorf("got %q", got)
	}
}
