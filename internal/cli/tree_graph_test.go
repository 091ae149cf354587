package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// drawn gives the tree of nodes written "kind id vm-or-from": a commit names the VM it was taken of and, after a comma,
// the commit that VM came from; a VM the commit it came from. Each is a minute younger than the one before.
func drawn(t *testing.T, width int, nodes ...string) string {
	t.Helper()
	all := map[string]*treeNode{}
	at := time.Date(2026, 4, 20, 10, 0, 0, 0, time.Local)
	for i, text := range nodes {
		f := strings.Fields(text)
		n := &treeNode{Type: f[0], ID: f[1], Name: "n", State: "running", created: at.Add(time.Duration(i) * time.Minute)}
		if n.Type == "commit" {
			n.vm, n.from, _ = strings.Cut(f[2], ",")
		} else if len(f) > 2 {
			n.from = f[2]
		}
		all[n.ID] = n
	}
	var out bytes.Buffer
	app := &App{Streams: &Streams{Out: &out, Width: func() int { return width }}}
	app.printTree(all, "")
	tree, _, _ := strings.Cut(out.String(), "\n\n")
	var lines []string
	for line := range strings.Lines(tree) {
		drawing, label, _ := strings.Cut(strings.TrimRight(line, "\n"), "0000")
		if width == 0 && label != "" {
			drawing = drawing + label[:1]
		}
		lines = append(lines, drawing)
	}
	return strings.Join(lines, "\n")
}

func TestTreeGraph(t *testing.T) {
	tests := map[string]struct {
		nodes []string
		want  string
	}{
		"a VM stands on its newest commit": {
			[]string{"vm 0000v", "commit 00001 0000v", "commit 00002 0000v"},
			"o v\n* 2\n* 1",
		},
		"a branch leaves the line": {
			[]string{"vm 0000v", "commit 00001 0000v", "vm 0000w 00001", "commit 00002 0000v", "commit 00003 0000w,00001"},
			"o w\n* 3\n| o v\n| * 2\n|/\n* 1",
		},
		"three children of one commit": {
			[]string{"vm 0000v", "commit 00001 0000v", "vm 0000a 00001", "vm 0000b 00001"},
			"o b\n| o a\n|/\n| o v\n|/\n* 1",
		},
		"branches of branches": {
			[]string{"vm 0000v", "commit 00001 0000v", "vm 0000a 00001", "commit 00002 0000a,00001", "vm 0000b 00002", "vm 0000c 00001"},
			"o c\n| o b\n| | o a\n| |/\n| * 2\n|/\n| o v\n|/\n* 1",
		},
		"several roots, the VM of one gone": {
			[]string{"commit 00001 0000x", "vm 0000v"},
			"o v\n* 1",
		},
		"a circle of a broken server is left out": {
			[]string{"vm 0000v", "commit 00001 0000x,00002", "commit 00002 0000y,00001"},
			"o v",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, drawn(t, 0, test.nodes...)); diff != "" {
				t.Error(diff)
			}
		})
	}
	for line := range strings.Lines(drawn(t, 12, "vm 0000v", "commit 00001 0000v", "vm 0000w 00001")) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 12 {
			t.Errorf("%q has %d columns", line, n)
		}
	}
}

func TestJoint(t *testing.T) {
	p := graphPrinter{columns: make([]*graphNode, 4)}
	for _, test := range []struct {
		left, right int
		want        string
	}{
		{0, 1, "|/ / /"}, {0, 3, "|_|_|/"}, {1, 2, "| |/ /"}, {-1, 1, "|  / /"},
	} {
		if got := p.joint(test.left, test.right); got != test.want {
			t.Errorf("joint(%d, %d) = %q, want %q", test.left, test.right, got, test.want)
		}
	}
}

func TestColours(t *testing.T) {
	var out bytes.Buffer
	s := &Streams{Out: &out, Width: func() int { return 0 }, Colour: true}
	s.table([]string{"STATE", "NAME"}, [][]string{{"running", "a"}, {"dead", "b"}})
	want := "STATE    NAME\n\x1b[32mrunning\x1b[0m  a\n\x1b[31mdead\x1b[0m     b\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	s.Colour = false
	if got := s.colour(red, "x"); got != "x" {
		t.Errorf("%q", got)
	}
}
