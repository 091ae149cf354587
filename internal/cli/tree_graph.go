package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"vers/api"
)

var stateMarks = map[string]string{
	api.StateRunning: "[R]", api.StatePaused: "[P]", api.StateBooting: "[B]", api.StateDead: "[D]", api.StateSleeping: "[S]",
}

// graphNode is a node as git log --graph would have it: the commits of a VM are a line, the VM stands on its newest
// commit as a working tree does, and a VM without commits on the one it was started from.
type graphNode struct {
	*treeNode
	below  *graphNode
	above  []*graphNode
	newest time.Time // of the node and all above it
}

// graph links the nodes and gives those that stand on nothing, the one with the newest line first.
func graph(nodes map[string]*treeNode) []*graphNode {
	all := map[string]*graphNode{}
	newestOf := map[string][]*graphNode{} // commits by the VM they were taken of
	for id, n := range nodes {
		all[id] = &graphNode{treeNode: n, newest: n.created}
		if n.Type == "commit" && n.vm != "" {
			newestOf[n.vm] = append(newestOf[n.vm], all[id])
		}
	}
	for _, line := range newestOf {
		slices.SortFunc(line, func(x, y *graphNode) int {
			return cmp.Or(x.created.Compare(y.created), strings.Compare(x.ID, y.ID))
		})
		for i, c := range line {
			if i > 0 {
				c.below = line[i-1]
			}
		}
	}
	for id, n := range all {
		line := newestOf[id]
		switch {
		case n.below != nil:
		case n.Type == "vm" && len(line) > 0:
			n.below = line[len(line)-1]
		case all[n.from] != nil:
			n.below = all[n.from]
		}
	}
	roots := []*graphNode{}
	for _, n := range all {
		if n.below == nil {
			roots = append(roots, n)
		} else {
			n.below.above = append(n.below.above, n)
		}
	}
	for _, root := range roots {
		root.order()
	}
	slices.SortFunc(roots, newer)
	return roots
}

func newer(x, y *graphNode) int {
	return cmp.Or(y.newest.Compare(x.newest), strings.Compare(x.ID, y.ID))
}

// order sorts what stands on n, the newest line first.
func (n *graphNode) order() {
	for _, child := range n.above {
		child.order()
		if child.newest.After(n.newest) {
			n.newest = child.newest
		}
	}
	slices.SortFunc(n.above, newer)
}

// graphPrinter draws with one column for each line that is not at its end.
type graphPrinter struct {
	app     *App
	digits  int          // of the ids shown
	width   int          // of the terminal; 0: any
	columns []*graphNode // what comes next in each column
}

func (a *App) printTree(nodes map[string]*treeNode, only string) {
	roots := graph(nodes)
	if only != "" {
		roots = slices.DeleteFunc(roots, func(root *graphNode) bool { return !root.holds(only) })
	}
	if len(roots) == 0 {
		fmt.Fprintln(a.Streams.Out, "No VMs and no commits. Start a VM with 'vers run'.")
		return
	}
	p := &graphPrinter{app: a, digits: 8, width: a.Streams.Width()}
	var ids []string
	for id := range nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for p.digits < 36 && sharePrefix(ids, p.digits) {
		p.digits++
	}
	for _, root := range roots {
		p.print(root)
	}
	fmt.Fprintln(a.Streams.Out, "\n* commit  o VM: [R] running  [P] paused  [B] booting  [D] dead")
}

// sharePrefix reports whether two of the sorted ids begin with the same digits.
func sharePrefix(ids []string, digits int) bool {
	for i := 1; i < len(ids); i++ {
		if ids[i][:min(digits, len(ids[i]))] == ids[i-1][:min(digits, len(ids[i-1]))] {
			return true
		}
	}
	return false
}

func (n *graphNode) holds(id string) bool {
	return n.ID == id || slices.ContainsFunc(n.above, func(c *graphNode) bool { return c.holds(id) })
}

// print draws a node below all that stands on it.
func (p *graphPrinter) print(n *graphNode) {
	for _, child := range n.above {
		p.print(child)
	}
	at := slices.Index(p.columns, n)
	if at < 0 {
		at = len(p.columns)
		p.columns = append(p.columns, n)
	}
	var lines strings.Builder
	for i := range p.columns {
		switch {
		case i != at:
			lines.WriteString("| ")
		case n.Type == "vm":
			lines.WriteString("o ")
		default:
			lines.WriteString("* ")
		}
	}
	p.line(lines.String(), p.label(n))
	p.next(at, n.below)
}

// next lets the column go on with below, or end. A column that leads to where another does joins it.
func (p *graphPrinter) next(at int, below *graphNode) {
	if below == nil {
		if at < len(p.columns)-1 {
			p.line(p.joint(-1, at), nil)
		}
		p.columns = slices.Delete(p.columns, at, at+1)
		return
	}
	other := slices.Index(p.columns, below)
	if other < 0 {
		p.columns[at] = below
		return
	}
	left, right := min(at, other), max(at, other)
	p.line(p.joint(left, right), nil)
	p.columns[left] = below
	p.columns = slices.Delete(p.columns, right, right+1)
}

// joint draws how column right ends, at column left if that is not -1, and how those to the right of it move up.
func (p *graphPrinter) joint(left, right int) string {
	cells := []rune(strings.Repeat(" ", 2*len(p.columns)))
	for i := range p.columns {
		switch {
		case i < right:
			cells[2*i] = '|'
		case i > right:
			cells[2*i-1] = '/'
		}
	}
	if left >= 0 {
		cells[2*right-1] = '/'
		for i := 2*left + 1; i < 2*right-1; i += 2 {
			cells[i] = '_'
		}
	}
	return strings.TrimRight(string(cells), " ")
}

// piece is a part of a label in its colour.
type piece struct{ colour, text string }

// line writes the drawing and the label, cut to the terminal.
func (p *graphPrinter) line(drawing string, label []piece) {
	s := p.app.Streams
	var out strings.Builder
	out.WriteString(drawing)
	used := utf8.RuneCountInString(drawing)
	for i, part := range label {
		text := part.text
		if i > 0 {
			text = "  " + text
		}
		if room := p.width - used; p.width > 0 && utf8.RuneCountInString(text) > room {
			out.WriteString(s.colour(part.colour, shorten(text, max(room, 0))))
			break
		}
		used += utf8.RuneCountInString(text)
		out.WriteString(s.colour(part.colour, text))
	}
	fmt.Fprintln(s.Out, out.String())
}

// label gives the text of one node.
func (p *graphPrinter) label(n *graphNode) []piece {
	label := []piece{{yellow, n.ID[:min(p.digits, len(n.ID))]}}
	if n.Type == "vm" {
		mark := stateMarks[n.State]
		if mark == "" {
			mark = "[" + clean(n.State) + "]"
		}
		label[0].colour = ""
		label = append(label, piece{colours["state"][n.State], mark})
		if n.Head {
			label = append(label, piece{cyan, "(" + strings.Join(append([]string{"HEAD"}, n.Aliases...), ", ") + ")"})
		} else if len(n.Aliases) > 0 {
			label = append(label, piece{green, "(" + strings.Join(n.Aliases, ", ") + ")"})
		}
	} else {
		if len(n.Tags) > 0 {
			label = append(label, piece{green, "(" + strings.Join(n.Tags, ", ") + ")"})
		}
		label = append(label, piece{"", clean(n.Name)})
		if n.IsPublic {
			label = append(label, piece{"", "public"})
		}
	}
	label = append(label, piece{"", when(n.created)})
	if n.Description != nil && *n.Description != "" {
		label = append(label, piece{"", clean(*n.Description)})
	}
	return label
}
