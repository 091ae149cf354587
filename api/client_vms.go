package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// VMs lists all VMs of the organisation, newest first.
func (c *Client) VMs(ctx context.Context) ([]VM, error) {
	var out []VM
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"vms"}}, &out)
}

// VM gives one VM.
func (c *Client) VM(ctx context.Context, vmID string) (VM, error) {
	var out VM
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"vm", vmID, "status"}}, &out)
}

// Metadata gives what there is to know about one VM.
func (c *Client) Metadata(ctx context.Context, vmID string) (VMMetadata, error) {
	var out VMMetadata
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"vm", vmID, "metadata"}}, &out)
}

// NewRoot starts a VM from an image. With waitBoot it returns when commands can run in it.
func (c *Client) NewRoot(ctx context.Context, req NewRootRequest, waitBoot bool) (NewVM, error) {
	var out NewVM
	r := call{method: http.MethodPost, path: []string{"vm", "new_root"}, body: req}
	r.query = boolQuery("wait_boot", waitBoot)
	return out, c.do(ctx, r, &out)
}

// FromCommit starts a VM from a commit, a plain tag or a reference.
func (c *Client) FromCommit(ctx context.Context, req FromCommitRequest) (NewVM, error) {
	var out NewVM
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"vm", "from_commit"}, body: req}, &out)
}

// BranchOptions are the choices of the branch calls.
type BranchOptions struct {
	Count      int  // how many children; 0 means 1
	KeepPaused bool // leave the source VM paused; only for VMs
	Network    NetworkOptions
	Terms      // of the children
}

func (o BranchOptions) query() url.Values {
	q := boolQuery("keep_paused", o.KeepPaused)
	q.Set("count", strconv.Itoa(max(o.Count, 1)))
	for name, seconds := range map[string]*int64{"sleep_after_seconds": o.SleepAfterSeconds, "ttl_seconds": o.TTLSeconds} {
		if seconds != nil {
			q.Set(name, strconv.FormatInt(*seconds, 10))
		}
	}
	return q
}

// Branch makes children of a VM or a commit, whichever has the id.
func (c *Client) Branch(ctx context.Context, id string, o BranchOptions) (NewVMs, error) {
	return c.branch(ctx, o, id, "branch")
}

// BranchRef makes VMs from what the reference repo:tag points at.
func (c *Client) BranchRef(ctx context.Context, repo, tag string, o BranchOptions) (NewVMs, error) {
	return c.branch(ctx, o, "branch", "by_ref", repo, tag)
}

// BranchTag makes VMs from what the plain tag points at.
func (c *Client) BranchTag(ctx context.Context, tag string, o BranchOptions) (NewVMs, error) {
	return c.branch(ctx, o, "branch", "by_tag", tag)
}

func (c *Client) branch(ctx context.Context, o BranchOptions, path ...string) (NewVMs, error) {
	var out NewVMs
	r := call{method: http.MethodPost, path: append([]string{"vm"}, path...), query: o.query()}
	if !o.Network.IsZero() {
		r.body = BranchRequest{o.Network}
	}
	return out, c.do(ctx, r, &out)
}

// Pause stops the vCPUs of a VM; memory is kept. A paused VM stays paused.
func (c *Client) Pause(ctx context.Context, vmID string) error {
	return c.setState(ctx, vmID, "Paused")
}

// Sleep puts a running VM to sleep: its state is on disk, its memory free. Whatever needs its guest wakes it, Resume too.
func (c *Client) Sleep(ctx context.Context, vmID string) error {
	return c.do(ctx, call{method: http.MethodPost, path: []string{"vm", vmID, "sleep"}}, nil)
}

// SetTerms changes when a VM falls asleep and when it is deleted.
func (c *Client) SetTerms(ctx context.Context, vmID string, t Terms) error {
	return c.do(ctx, call{method: http.MethodPatch, path: []string{"vm", vmID, "terms"}, body: t}, nil)
}

// Resume lets a paused VM run, and wakes one that sleeps. A running VM runs on.
func (c *Client) Resume(ctx context.Context, vmID string) error {
	return c.setState(ctx, vmID, "Running")
}

func (c *Client) setState(ctx context.Context, vmID, state string) error {
	r := call{method: http.MethodPatch, path: []string{"vm", vmID, "state"}, body: StateRequest{State: state}}
	return c.do(ctx, r, nil)
}

// Resize grows the root disk and the file system on it to size MiB.
func (c *Client) Resize(ctx context.Context, vmID string, size int64) error {
	r := call{method: http.MethodPatch, path: []string{"vm", vmID, "disk"}, body: DiskRequest{FSSizeMiB: size}}
	return c.do(ctx, r, nil)
}

// SetLabels replaces all labels of a VM.
func (c *Client) SetLabels(ctx context.Context, vmID string, labels map[string]string) error {
	r := call{method: http.MethodPatch, path: []string{"vm", vmID, "label"}, body: LabelRequest{Labels: labels}}
	return c.do(ctx, r, nil)
}

// DeleteVM ends a VM and frees what it held. Its commits and children live on.
func (c *Client) DeleteVM(ctx context.Context, vmID string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: []string{"vm", vmID}}, nil)
}

// Commit takes a commit of a running or paused VM. It is listed when the call returns.
func (c *Client) Commit(ctx context.Context, vmID string, req CommitRequest, keepPaused bool) (CommitCreated, error) {
	var out CommitCreated
	r := call{method: http.MethodPost, path: []string{"vm", vmID, "commit"}, body: req}
	r.query = boolQuery("keep_paused", keepPaused)
	return out, c.do(ctx, r, &out)
}

// SSHKey gives the key that logs in as root, and the guest's own host key.
func (c *Client) SSHKey(ctx context.Context, vmID string) (SSHKey, error) {
	var out SSHKey
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"vm", vmID, "ssh_key"}}, &out)
}

// boolQuery leaves false out, as all these parameters default to it.
func boolQuery(name string, value bool) url.Values {
	q := url.Values{}
	if value {
		q.Set(name, "true")
	}
	return q
}
