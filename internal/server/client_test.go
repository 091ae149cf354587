package server

import (
	"bufio"
	"io"
	"strings"
	"testing"

	"vers/api"
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
