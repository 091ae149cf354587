package conformance_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"vers/api"
	"vers/test/rig"
)

// crowd is what many clients work on at once.
type crowd struct {
	t   *testing.T
	ctx context.Context

	mu      sync.Mutex
	vms     []string
	commits []string
	moves   map[string]string // of the tag: from commit to commit, as acknowledged
}

func (c *crowd) pick(list *[]string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(*list) == 0 {
		return ""
	}
	return (*list)[rand.IntN(len(*list))]
}

func (c *crowd) keep(list *[]string, ids ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*list = append(*list, ids...)
}

// expected accepts what may happen when others delete and move the same things.
func (c *crowd) expected(what string, err error) bool {
	var refused *api.ResponseError
	switch {
	case err == nil:
		return true
	case errors.As(err, &refused) && (refused.Status == http.StatusNotFound || refused.Status == http.StatusConflict):
		return false
	}
	c.t.Errorf("%s: %v", what, err)
	return false
}

// step is what one client does next.
func (c *crowd) step(client *api.Client) {
	vm, commit := c.pick(&c.vms), c.pick(&c.commits)
	switch rand.IntN(9) {
	case 0, 1:
		made, err := client.Commit(c.ctx, vm, api.CommitRequest{}, false)
		if c.expected("commit", err) {
			c.keep(&c.commits, made.CommitID)
			c.move(client, made.CommitID)
		}
	case 2:
		children, err := client.Branch(c.ctx, vm, api.BranchOptions{Count: 2})
		if c.expected("branch", err) {
			for _, child := range children.VMs {
				c.keep(&c.vms, child.VMID)
			}
		}
	case 3:
		restored, err := client.FromCommit(c.ctx, api.FromCommitRequest{CommitID: &commit})
		if c.expected("restore", err) {
			c.keep(&c.vms, restored.VMID)
		}
	case 4, 5:
		c.expected("kill", client.DeleteVM(c.ctx, vm))
	case 6:
		c.expected("pause", client.Pause(c.ctx, vm))
		c.expected("resume", client.Resume(c.ctx, vm))
	case 7:
		c.expected("delete commit", client.DeleteCommit(c.ctx, commit))
	case 8:
		result, err := client.Exec(c.ctx, vm, api.ExecRequest{Command: []string{"sh", "-c", "echo here"}})
		if c.expected("exec", err) && result.Stdout != "here\n" {
			c.t.Errorf("exec gives %+v", result)
		}
	}
}

// move moves the tag to a new commit, if nobody else has moved it meanwhile.
func (c *crowd) move(client *api.Client, to string) {
	tag, err := client.RepoTag(c.ctx, "app", "latest")
	if !c.expected("get tag", err) {
		return
	}
	err = client.UpdateRepoTag(c.ctx, "app", "latest", api.RepoTagUpdate{CommitID: &to, ExpectedCommitID: &tag.CommitID})
	if !c.expected("move tag", err) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if other, ok := c.moves[tag.CommitID]; ok {
		c.t.Errorf("two clients moved the tag away from %s: to %s and to %s", tag.CommitID, other, to)
	}
	c.moves[tag.CommitID] = to
}

// TestCrowd lets 200 clients branch, commit, restore, pause, kill and move a tag on the same machines at once. Nobody gets
// an answer that he should not; no move of the tag is lost; nothing is left when all is deleted.
func TestCrowd(t *testing.T) {
	const clients, steps = 200, 6
	s := rig.New(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := &crowd{t: t, ctx: ctx, moves: map[string]string{}}
	first := c.client(s)
	for range 10 {
		memory := int64(128)
		vm, err := first.NewRoot(ctx, api.NewRootRequest{VMConfig: api.VMConfig{MemSizeMiB: &memory}}, true)
		must(t, err)
		c.vms = append(c.vms, vm.VMID)
	}
	start, err := first.Commit(ctx, c.vms[0], api.CommitRequest{}, false)
	must(t, err)
	c.commits = append(c.commits, start.CommitID)
	_, err = first.CreateRepository(ctx, api.RepositoryRequest{Name: "app"})
	must(t, err)
	_, err = first.CreateRepoTag(ctx, "app", api.RepoTagRequest{TagName: "latest", CommitID: start.CommitID})
	must(t, err)

	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			client := c.client(s)
			defer client.CloseIdle()
			for range steps {
				c.step(client)
			}
		})
	}
	all.Wait()

	// Every acknowledged move is in the history, and they form one line.
	at := start.CommitID
	for range c.moves {
		at = c.moves[at]
	}
	if tag, err := first.RepoTag(ctx, "app", "latest"); err != nil || tag.CommitID != at {
		t.Errorf("%d moves lead to %s, the tag points at %s (%v)", len(c.moves), at, tag.CommitID, err)
	}
	history, err := first.RepoTagHistory(ctx, "app", "latest")
	must(t, err)
	if len(history.Entries) != len(c.moves)+1 {
		t.Errorf("%d moves were acknowledged, the history has %d entries", len(c.moves), len(history.Entries))
	}
	restored, err := first.FromCommit(ctx, api.FromCommitRequest{Ref: ref("app:latest")})
	must(t, err)
	must(t, first.DeleteVM(ctx, restored.VMID))

	vms, err := first.VMs(ctx)
	must(t, err)
	for _, vm := range vms {
		must(t, first.DeleteVM(ctx, vm.VMID))
	}
	must(t, first.DeleteRepository(ctx, "app"))
	commits, err := first.Commits(ctx)
	must(t, err)
	for _, commit := range commits {
		must(t, first.DeleteCommit(ctx, commit.CommitID))
	}
	s.Empty(t)
	t.Logf("%d VMs and %d commits at the end, %d moves of the tag", len(vms), len(commits), len(c.moves))
}

func (c *crowd) client(s *rig.Server) *api.Client {
	client, err := api.NewClient(s.URL, api.WithKey(s.Key), api.WithUserAgent(fmt.Sprint("client of ", c.t.Name())))
	if err != nil {
		panic(err) // the rig's address
	}
	return client
}

func ref(s string) *string { return &s }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
