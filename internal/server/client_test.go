package server

import (
	"bufio"
	"io"
	"strings"
	"testing"

	"vers/api"
	"vers/internal/guest"
	"vers/internal/ident"
)

// Our own client and the server understand each other, errors and upgraded connections included.
func TestClient(t *testing.T) {
	h := newHarness(t)
	ctx := t.Context()
	client, err := api.NewClient(h.url, api.WithKey(h.key))
	h.must(err)
	defer client.CloseIdle()
	made, err := client.NewRoot(ctx, api.NewRootRequest{}, true)
	h.must(err)
	children, err := client.Branch(ctx, made.VMID, api.BranchOptions{Count: 3})
	h.must(err)
	vms, err := client.VMs(ctx)
	h.must(err)
	if len(children.VMs) != 3 || len(vms) != 4 {
		t.Errorf("%d children, %d VMs", len(children.VMs), len(vms))
	}
	if _, err := client.VM(ctx, ident.New()); !api.IsNotFound(err) || !strings.Contains(err.Error(), "not found") {
		t.Errorf("unknown VM: %v", err)
	}

	h.guest(made.VMID).script = script
	var stdout, stderr strings.Builder
	code, err := client.Run(ctx, made.VMID, api.ExecRequest{Command: []string{"x"}}, &stdout, &stderr, func(string) {})
	if err != nil || code != 3 || stdout.String() != "out\xff\x00" || stderr.String() != "err" {
		t.Errorf("code %d, stdout %q, stderr %q, %v", code, &stdout, &stderr, err)
	}

	h.guest(made.VMID).logs = guest.Logs{Entries: []guest.LogEntry{{Stream: "stdout", Data: []byte("x\xff")}}, NextOffset: 2}
	if logs, err := client.Logs(ctx, made.VMID, api.LogOptions{}); err != nil || len(logs.Entries) != 1 || string(logs.Entries[0].Data) != "x\xff" {
		t.Errorf("%+v, %v", logs, err)
	}
	if logs, err := client.Logs(ctx, made.VMID, api.LogOptions{Offset: 2, MaxEntries: 5, Stream: api.Stdout}); err != nil || !logs.EOF || logs.NextOffset != 2 {
		t.Errorf("%+v, %v", logs, err)
	}
	h.must(client.WriteFile(ctx, made.VMID, api.FileRequest{Path: "/etc/a b?c", Content: []byte("\x00\xff")}))
	if content, err := client.ReadFile(ctx, made.VMID, "/etc/a b?c"); err != nil || string(content) != "\x00\xff" {
		t.Errorf("%q, %v", content, err)
	}
	if _, err := client.ReadFile(ctx, made.VMID, "/etc/none"); !api.IsNotFound(err) {
		t.Errorf("unknown file: %v", err)
	}

	conn, err := client.SSH(ctx, made.VMID)
	h.must(err)
	defer conn.Close()
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err != nil || line != "SSH-2.0-fake\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := r.ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("%q, %v", line, err)
	}
}

// Sharing, by our own client.
func TestSharingClient(t *testing.T) {
	h := newHarness(t)
	ctx := t.Context()
	first := h.newTag("latest")
	second := h.newCommit(h.newVM())
	client, err := api.NewClient(h.url, api.WithKey(h.key))
	h.must(err)
	defer client.CloseIdle()
	other, err := api.NewClient(h.url, api.WithKey(h.otherKey))
	h.must(err)
	defer other.CloseIdle()
	nobody, err := api.NewClient(h.url)
	h.must(err)
	defer nobody.CloseIdle()

	err = client.UpdateRepoTag(ctx, "app", "latest", api.RepoTagUpdate{CommitID: &second, ExpectedCommitID: &second})
	if api.StatusOf(err) != 409 || !strings.Contains(err.Error(), first) {
		t.Errorf("%v", err)
	}
	h.must(client.UpdateRepoTag(ctx, "app", "latest", api.RepoTagUpdate{CommitID: &second, ExpectedCommitID: &first}))
	history, err := client.RepoTagHistory(ctx, "app", "latest")
	h.must(err)
	back, err := client.RollBackRepoTag(ctx, "app", "latest", api.TagRollbackRequest{ExpectedCommitID: &second})
	h.must(err)
	forth, err := client.RollBackRepoTag(ctx, "app", "latest", api.TagRollbackRequest{EntryID: &history.Entries[0].EntryID})
	h.must(err)
	if len(history.Entries) != 2 || back.CommitID != first || forth.CommitID != second {
		t.Errorf("%+v, %+v, %+v", history, back, forth)
	}
	protection, err := client.ProtectRepoTag(ctx, "app", "latest", []string{h.key[:36]})
	h.must(err)
	same, err := client.RepoTagProtection(ctx, "app", "latest")
	h.must(err)
	open, err := client.ProtectRepoTag(ctx, "app", "latest", nil)
	h.must(err)
	if !protection.Protected || len(same.Keys) != 1 || open.Protected {
		t.Errorf("%+v, %+v, %+v", protection, same, open)
	}

	h.must(client.SetVisibility(ctx, "app", true))
	repos, err := nobody.PublicRepositories(ctx)
	h.must(err)
	repo, err := nobody.PublicRepository(ctx, "acme", "app")
	h.must(err)
	tags, err := nobody.PublicRepoTags(ctx, "acme", "app")
	h.must(err)
	tag, err := nobody.PublicRepoTag(ctx, "acme", "app", "latest")
	h.must(err)
	if len(repos) != 1 || repos[0] != repo || len(tags) != 1 || tags[0] != tag || tag.CommitID != second {
		t.Errorf("%+v, %+v, %+v, %+v", repos, repo, tags, tag)
	}
	name := "mine"
	fork, err := other.Fork(ctx, api.ForkRequest{SourceOrg: "acme", SourceRepo: "app", SourceTag: "latest", RepoName: &name})
	h.must(err)
	if fork.Reference != "mine:latest" || fork.VMID == "" {
		t.Errorf("%+v", fork)
	}

	created, err := other.CreateTag(ctx, api.TagRequest{TagName: "golden", CommitID: fork.CommitID})
	h.must(err)
	h.must(other.UpdateTag(ctx, "golden", api.TagUpdate{Description: api.Text("d")}))
	plain, err := other.Tag(ctx, "golden")
	h.must(err)
	all, err := other.Tags(ctx)
	h.must(err)
	if len(all) != 1 || all[0].TagID != created.TagID || plain.CommitID != fork.CommitID || *plain.Description != "d" {
		t.Errorf("%+v, %+v", all, plain)
	}
	h.must(other.DeleteTag(ctx, "golden"))
	if err := client.DeleteRepoTagAt(ctx, "app", "latest", first); api.StatusOf(err) != 409 {
		t.Errorf("%v", err)
	}
	h.must(client.DeleteRepoTagAt(ctx, "app", "latest", second))
}
