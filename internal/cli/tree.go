package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/local"
	"vers/internal/cli/ref"
	"vers/internal/fault"
)

func (a *App) treeCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "tree [vm|alias]", Short: "Show how VMs and commits descend from each other",
		Long: `Show VMs with the commits taken of them, and commits with the VMs started from them. With a VM only the
tree it belongs to. Commits show their tags; HEAD is marked.`,
		Example: "  vers tree\n  vers tree dev --format json",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.tree(cmd.Context(), optional(args), format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	format.add(cmd)
	return cmd
}

// treeNode is a VM or a commit, with what came from it.
type treeNode struct {
	Type        string      `json:"type"` // "vm" or "commit"
	ID          string      `json:"id"`
	Name        string      `json:"name,omitempty"`
	Description *string     `json:"description,omitempty"`
	Aliases     []string    `json:"aliases,omitempty"`
	Tags        []string    `json:"tags,omitempty"`
	State       string      `json:"state,omitempty"`
	Head        bool        `json:"head,omitempty"`
	IsPublic    bool        `json:"is_public,omitempty"`
	CreatedAt   string      `json:"created_at"`
	Children    []*treeNode `json:"children"`

	parent  string
	created time.Time
}

func (a *App) tree(ctx context.Context, typed string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	only := ""
	if typed != "" {
		t, err := a.target(ctx, typed)
		if err != nil {
			return err
		}
		only = t.ID
	}
	ctx, cancel := limit(ctx, listLimit, "reading the tree")
	defer cancel()
	nodes, err := a.treeNodes(ctx, client)
	if err != nil {
		return err
	}
	roots := arrange(nodes)
	if only != "" {
		if nodes[only] == nil {
			return fault.NotFoundf("VM '%s' not found; 'vers status' lists the VMs there are", typed)
		}
		roots = slices.DeleteFunc(roots, func(root *treeNode) bool { return !root.holds(only) })
	}
	if mode == modeJSON {
		return printJSON(a.Streams.Out, roots)
	}
	a.printTree(roots)
	return nil
}

// treeNodes collects VMs, commits and tags, in parallel.
func (a *App) treeNodes(ctx context.Context, client *api.Client) (map[string]*treeNode, error) {
	var (
		wg                            sync.WaitGroup
		vms                           []api.VM
		commits                       []api.CommitInfo
		tags                          map[string][]string
		vmsErr, commitsErr, tagsError error
	)
	wg.Go(func() { vms, vmsErr = client.VMs(ctx) })
	wg.Go(func() { commits, commitsErr = client.Commits(ctx) })
	wg.Go(func() { tags, tagsError = tagsByCommit(ctx, client) })
	wg.Wait()
	if err := cmp.Or(vmsErr, commitsErr, tagsError); err != nil {
		return nil, err
	}
	aliases, err := a.aliases().All()
	if err != nil {
		return nil, err
	}
	head, _, _ := a.folder().Head() // a HEAD that cannot be read marks nothing
	nodes := map[string]*treeNode{}
	for _, vm := range vms {
		node := &treeNode{
			Type: "vm", ID: vm.VMID, State: vm.State, Head: vm.VMID == head, Aliases: local.Names(aliases, vm.VMID),
			CreatedAt: vm.CreatedAt.Format(time.RFC3339Nano), created: vm.CreatedAt, Children: []*treeNode{},
		}
		if vm.Parent != nil {
			node.parent = *vm.Parent
		}
		nodes[vm.VMID] = node
	}
	for _, c := range commits {
		node := &treeNode{
			Type: "commit", ID: c.CommitID, Name: c.Name, Description: c.Description, Tags: tags[c.CommitID],
			IsPublic: c.IsPublic, CreatedAt: c.CreatedAt, Children: []*treeNode{},
		}
		node.created, _ = time.Parse(time.RFC3339Nano, c.CreatedAt)
		nodes[c.CommitID] = node
	}
	for _, c := range commits {
		// The VM it was taken of, or, if that is gone, the commit that VM had been started from.
		for _, parent := range []*string{c.ParentVMID, c.GrandparentCommitID} {
			if parent != nil && nodes[*parent] != nil {
				nodes[c.CommitID].parent = *parent
				break
			}
		}
	}
	return nodes, nil
}

// tagsByCommit gives the references that point at each commit.
func tagsByCommit(ctx context.Context, client *api.Client) (map[string][]string, error) {
	repos, err := client.Repositories(ctx)
	if err != nil {
		return nil, err
	}
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		first error
		tags  = map[string][]string{}
		slots = make(chan struct{}, 8)
	)
	for _, repo := range repos {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			list, err := client.RepoTags(ctx, repo.Name)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && !api.IsNotFound(err) { // deleted meanwhile
				first = cmp.Or(first, err)
			}
			for _, tag := range list {
				tags[tag.CommitID] = append(tags[tag.CommitID], repo.Name+":"+tag.TagName)
			}
		})
	}
	wg.Wait()
	for _, names := range tags {
		slices.Sort(names)
	}
	return tags, first
}

// arrange hangs every node under its parent and gives those without one, all ordered by age.
func arrange(nodes map[string]*treeNode) []*treeNode {
	roots := []*treeNode{}
	for _, node := range nodes {
		if parent := nodes[node.parent]; parent != nil && !node.holdsParent(nodes) {
			parent.Children = append(parent.Children, node)
		} else {
			roots = append(roots, node)
		}
	}
	older := func(x, y *treeNode) int { return cmp.Or(x.created.Compare(y.created), strings.Compare(x.ID, y.ID)) }
	slices.SortFunc(roots, older)
	for _, node := range nodes {
		slices.SortFunc(node.Children, older)
	}
	return roots
}

// holdsParent reports that a node is its own ancestor, which would hang it nowhere. Only a broken server says so.
func (n *treeNode) holdsParent(nodes map[string]*treeNode) bool {
	steps := 0
	for at := nodes[n.parent]; at != nil; at = nodes[at.parent] {
		if steps++; at == n || steps > len(nodes) {
			return true
		}
	}
	return false
}

// holds reports whether id is in the tree below n.
func (n *treeNode) holds(id string) bool {
	return n.ID == id || slices.ContainsFunc(n.Children, func(c *treeNode) bool { return c.holds(id) })
}

var stateMarks = map[string]string{
	api.StateRunning: "[R]", api.StatePaused: "[P]", api.StateBooting: "[B]", api.StateDead: "[D]", api.StateSleeping: "[S]",
}

func (a *App) printTree(roots []*treeNode) {
	if len(roots) == 0 {
		fmt.Fprintln(a.Streams.Out, "No VMs and no commits. Start a VM with 'vers run'.")
		return
	}
	p := treePrinter{app: a, digits: 8, width: a.Streams.Width()}
	var ids []string
	for _, root := range roots {
		ids = root.ids(ids)
	}
	for p.digits < 36 && slices.ContainsFunc(ids, func(id string) bool { return len(ref.Match(id[:min(p.digits, len(id))], ids)) > 1 }) {
		p.digits++
	}
	for _, root := range roots {
		p.print(root, "", "")
	}
	fmt.Fprintln(a.Streams.Out, "\n[R] running  [P] paused  [B] booting  [D] dead  ◆ commit")
}

func (n *treeNode) ids(to []string) []string {
	to = append(to, n.ID)
	for _, child := range n.Children {
		to = child.ids(to)
	}
	return to
}

type treePrinter struct {
	app    *App
	digits int // of the ids shown
	width  int // of the terminal; 0: any
}

func (p treePrinter) print(n *treeNode, first, rest string) {
	line := first + p.label(n)
	if p.width > 0 {
		line = shorten(line, p.width)
	}
	fmt.Fprintln(p.app.Streams.Out, line)
	for i, child := range n.Children {
		if i == len(n.Children)-1 {
			p.print(child, rest+"└── ", rest+"    ")
		} else {
			p.print(child, rest+"├── ", rest+"│   ")
		}
	}
}

// label gives the text of one node.
func (p treePrinter) label(n *treeNode) string {
	id := n.ID[:min(p.digits, len(n.ID))]
	var parts []string
	if n.Type == "vm" {
		mark := stateMarks[n.State]
		if mark == "" {
			mark = "[" + clean(n.State) + "]"
		}
		parts = append(parts, mark, id)
		parts = append(parts, n.Aliases...)
	} else {
		parts = append(parts, "◆", id)
		if n.Name != "" {
			parts = append(parts, clean(n.Name))
		}
		if len(n.Tags) > 0 {
			parts = append(parts, "("+strings.Join(n.Tags, ", ")+")")
		}
		if n.IsPublic {
			parts = append(parts, "public")
		}
	}
	parts = append(parts, when(n.created))
	if n.Head {
		parts = append(parts, "← HEAD")
	}
	return strings.Join(parts, "  ")
}
