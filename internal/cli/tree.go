package cli

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/local"
	"vers/internal/fault"
)

func (a *App) treeCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "tree [vm|alias]", Short: "Show how VMs and commits descend from each other",
		Long: `Draw VMs and commits as 'git log --graph' does: the commits of a VM are a line, the VM itself stands on the
newest of them as a working tree does, and lines part where a commit was branched or restored. Commits show
their tags, VMs their aliases; HEAD is marked. With a VM only what is connected with it is drawn.

JSON is nested instead: VMs hold the commits made of them, commits the VMs started from them.`,
		Example: "  vers tree\n  vers tree dev --format json",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.tree(cmd.Context(), optional(args), format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	format.addJSON(cmd)
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

	parent  string // in the nested form
	vm      string // of a commit: the VM it was taken of
	from    string // of a VM: the commit it was started from; of a commit: the one its VM was started from
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
	if only != "" && nodes[only] == nil {
		return fault.NotFoundf("VM '%s' not found; 'vers status' lists the VMs there are", typed)
	}
	if mode == modeText {
		a.printTree(nodes, only)
		return nil
	}
	roots := arrange(nodes)
	if only != "" {
		roots = slices.DeleteFunc(roots, func(root *treeNode) bool { return !root.holds(only) })
	}
	return printJSON(a.Streams.Out, roots)
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
			node.parent, node.from = *vm.Parent, *vm.Parent
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
		if c.ParentVMID != nil {
			nodes[c.CommitID].vm = *c.ParentVMID
		}
		if c.GrandparentCommitID != nil {
			nodes[c.CommitID].from = *c.GrandparentCommitID
		}
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

// tagsByCommit gives the plain tags and references that point at each commit.
func tagsByCommit(ctx context.Context, client *api.Client) (map[string][]string, error) {
	repos, err := client.Repositories(ctx)
	if err != nil {
		return nil, err
	}
	plain, err := client.Tags(ctx)
	if err != nil {
		return nil, err
	}
	tags := map[string][]string{}
	for _, tag := range plain {
		tags[tag.CommitID] = append(tags[tag.CommitID], tag.TagName)
	}
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		first error
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
