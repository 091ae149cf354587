package enginetest

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

// refused: what an engine says it has not is refused before anything runs.
func (s *suite) refused(t *testing.T) {
	c := s.capabilities
	for _, test := range []struct {
		name, step string
		has        bool
		change     func(*engine.Build)
	}{
		{"here-documents", "RUN <<EOF\ntrue\nEOF", c.Heredocs, nil},
		{"cache mounts", "RUN --mount=type=cache,target=/cache true", c.CacheMount, nil},
		{"no network", "RUN true", c.NoNetwork, func(b *engine.Build) { b.Network = engine.NetworkNone }},
		{"processes", "RUN true", c.Limits, func(b *engine.Build) { b.Limits.Processes = 100 }},
		{"disk space", "RUN true", c.Limits, func(b *engine.Build) { b.Limits.DiskMiB = 1000 }},
	} {
		_, log, err := s.run(soon(t), t, "FROM "+baseName+"\nRUN echo be''gun\n"+test.step+"\n", test.change)
		switch {
		case test.has && err != nil:
			t.Errorf("%s: %v\n%s", test.name, err, log)
		case !test.has && (!fault.Is(err, fault.Unavailable) || strings.Contains(log, "begun")):
			t.Errorf("%s, which the engine has not: %v\n%s", test.name, err, log)
		}
	}
}

// builders is the document that says what engines can do. Packages of engines are all as deep.
const builders = "../../../../docs/builds.md"

// documented compares the document's table and list of gaps with what the engine says of itself.
func (s *suite) documented(t *testing.T) {
	text, err := os.ReadFile(builders)
	if err != nil {
		t.Fatal(err)
	}
	c := s.capabilities
	cells, gaps := readDocument(t, string(text), map[string]string{engine.Embedded: "embedded", engine.Docker: "Docker", engine.Podman: "Podman"}[c.Engine])
	_, recalls := s.Engine.(engine.Recaller)
	for row, has := range map[string]bool{
		"an unchanged folder is known by its digest": recalls,
		"here-documents": c.Heredocs, "`RUN --mount=type=cache`": c.CacheMount, "file capabilities through `COPY --from`": c.FileCapabilities,
		"images and cached steps of each organisation by themselves": c.OwnImages, "steps without network": c.NoNetwork,
		"steps reach what `[egress]` permits, nothing else": c.Egress, "a cancelled step ends at once": c.Cancel,
		"memory of steps limited": c.Memory, "processes and disk space of a build limited": c.Limits,
	} {
		answer, _, _ := strings.Cut(cells[row], " ")
		if answer = strings.TrimRight(answer, ",:;"); answer != map[bool]string{true: "yes", false: "no"}[has] {
			t.Errorf("%s: %s says %q, the engine %v", row, builders, cells[row], has)
		}
	}
	said := slices.DeleteFunc(slices.Clone(c.Notes), func(note string) bool {
		return strings.HasPrefix(note, "This host") || strings.HasPrefix(note, "There is no /dev")
	})
	if diff := cmp.Diff(gaps, said); diff != "" {
		t.Errorf("known gaps, - %s, + the engine:\n%s", builders, diff)
	}
}

// readDocument finds an engine's column in the table, and its list of known gaps.
func readDocument(t *testing.T, text, name string) (cells map[string]string, gaps []string) {
	t.Helper()
	_, table, ok := strings.Cut(text, "| | embedded | Docker | Podman |\n")
	_, list, found := strings.Cut(text, "Known gaps of "+name+":\n\n")
	if !ok || !found {
		t.Fatalf("%s has no table of engines, or no known gaps of %s", builders, name)
	}
	column := slices.Index([]string{"embedded", "Docker", "Podman"}, name)
	cells = map[string]string{}
	for line := range strings.Lines(table) {
		row := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(row) != 4 {
			break
		}
		cells[strings.TrimSpace(row[0])] = strings.TrimSpace(row[column+1])
	}
	for line := range strings.Lines(list) {
		gap, ok := strings.CutPrefix(strings.TrimSpace(line), "- ")
		if !ok {
			break
		}
		gaps = append(gaps, gap)
	}
	return cells, gaps
}
