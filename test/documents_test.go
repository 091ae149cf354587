package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// TestREADME runs the five-minute tour as it is printed, in one shell.
func TestREADME(t *testing.T) {
	u := newUser(t, shared)
	t.Cleanup(func() { u.try("vers repo delete my-app") })
	data, err := os.ReadFile("../README.md")
	must(t, err)
	_, tour, ok := strings.Cut(string(data), "## Five minutes")
	if !ok {
		t.Fatal("README.md has no five-minute tour")
	}
	tour, _, _ = strings.Cut(tour, "\n## ")
	blocks := shellBlock.FindAllStringSubmatch(tour, -1)
	if len(blocks) < 5 {
		t.Fatalf("README.md has %d shell blocks in its tour, expected more", len(blocks))
	}
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	for _, b := range blocks {
		script.WriteString(b[1])
	}
	out := u.run(script.String())
	if !strings.Contains(out, "ready") {
		t.Errorf("the restored machine of the tour does not have its state:\n%s", out)
	}
	if left := u.run("vers status -q"); left != "" {
		t.Errorf("the tour leaves machines behind: %s", left)
	}
}

// TestLinks: what the documents point at exists.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	documents, err := filepath.Glob("../docs/*.md")
	must(t, err)
	documents = append(documents, "../README.md", "../CONTRIBUTING.md", "../CHANGELOG.md")
	for _, d := range documents {
		data, err := os.ReadFile(d)
		must(t, err)
		for _, m := range link.FindAllStringSubmatch(string(data), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(d), m[1])); err != nil {
				t.Errorf("%s points at %s, which does not exist", d, m[1])
			}
		}
	}
}
