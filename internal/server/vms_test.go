package server

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
)

func TestNewRoot(t *testing.T) {
	h := newHarness(t)
	a := h.call("POST", "/vm/new_root?wait_boot=true", `{"vm_config":{"mem_size_mib":512,"vcpu_count":2,"fs_size_mib":1024,
		"image_name":"default","kernel_name":"default.bin","labels":{"a":"b"}},"env":{"A":"1"},"cold":true}`).want(201)
	vm := read[api.NewVM](a).VMID
	want := machine.RunRequest{Labels: map[string]string{"a": "b"}, Env: map[string]string{"A": "1"}, WaitBoot: true, Cold: true,
		Config: catalog.VMConfig{MemSizeMiB: 512, VCPUCount: 2, FSSizeMiB: 1024, ImageName: "default", KernelName: "default.bin"}}
	if diff := cmp.Diff(want, h.machines.lastly); diff != "" {
		t.Error(diff)
	}
	for _, path := range []string{"/vm/" + vm + "/status", "/vm/" + vm} {
		got := read[api.VM](h.call("GET", path, "").want(200))
		if got.VMID != vm || got.State != "running" || got.OwnerID != h.caller.KeyID || got.Labels["a"] != "b" || got.CreatedAt.IsZero() {
			t.Errorf("%s: %+v", path, got)
		}
	}
	for _, path := range []string{"/vms", "/vm"} {
		if list := read[[]api.VM](h.call("GET", path, "").want(200)); len(list) != 1 || list[0].VMID != vm {
			t.Errorf("%s: %+v", path, list)
		}
	}

	// What is left out or null has its default: zero for the manager.
	h.call("POST", "/vm/new_root", `{"vm_config":{"mem_size_mib":null,"image_name":null,"labels":null}}`).want(201)
	if diff := cmp.Diff(machine.RunRequest{}, h.machines.lastly); diff != "" {
		t.Error(diff)
	}
	for body, says := range map[string]string{
		`{"vm_config":{"mem_size_mib":0}}`:     "Invalid memory size (must be positive)",
		`{"vm_config":{"mem_size_mib":-1}}`:    "Invalid memory size (must be positive)",
		`{"vm_config":{"vcpu_count":0}}`:       "Invalid vCPU count (must be positive)",
		`{"vm_config":{"fs_size_mib":-5}}`:     "Invalid filesystem size (must be positive)",
		`{"vm_config":{"mem_size_mib":1.5}}`:   "mem_size_mib",
		`{"vm_config":{"mem_size_mib":"512"}}`: "mem_size_mib",
		`{"vm_config":{},"env":{"1A":""}}`:     "1A",
		`{}`:                                   "vm_config",
		`{"vm_config":null}`:                   "vm_config",
		`{"vm_config":{"labels":{"a":1}}}`:     "labels",
	} {
		h.call("POST", "/vm/new_root", body).want(400).says(says)
	}
	h.failNext(fault.NotFoundf("rootfs image 'x' not found"))
	h.call("POST", "/vm/new_root", `{"vm_config":{"image_name":"x"}}`).want(404).says("rootfs image 'x' not found")
	h.failNext(fault.Exhaustedf("Insufficient system resources: asked for 9 MiB, 1 MiB free"))
	h.call("POST", "/vm/new_root", `{"vm_config":{}}`).want(507).says("Insufficient system resources")
}

func TestMetadataAndKey(t *testing.T) {
	h := newHarness(t)
	root := h.newVM()
	commit := h.newCommit(root)
	child := read[api.NewVM](h.call("POST", "/vm/from_commit", `{"commit_id":"`+commit+`"}`).want(201)).VMID

	got := read[api.VMMetadata](h.call("GET", "/vm/"+root+"/metadata", "").want(200))
	if got.VMID != root || got.IP == "" || got.ParentCommitID != nil || got.GrandparentVM != nil || got.DeletedAt != nil || got.FSSizeMiB != 1024 {
		t.Errorf("root: %+v", got)
	}
	got = read[api.VMMetadata](h.call("GET", "/vm/"+child+"/metadata", "").want(200))
	if got.ParentCommitID == nil || *got.ParentCommitID != commit || got.GrandparentVM == nil || *got.GrandparentVM != root {
		t.Errorf("child: %+v", got)
	}
	key := read[api.SSHKey](h.call("GET", "/vm/"+root+"/ssh_key", "").want(200))
	if key.PrivateKey != "private key" || key.Port != 22 || key.HostKey != h.hostLine {
		t.Errorf("%+v, want host key %q", key, h.hostLine)
	}
	h.setVM(root, func(vm *machine.VM) { vm.SSHHostKey = "nonsense" })
	h.call("GET", "/vm/"+root+"/ssh_key", "").want(500)
}

func TestState(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	for _, state := range []string{"Paused", "paused", "PAUSED", "Running", "running"} {
		h.call("PATCH", "/vm/"+vm+"/state", `{"state":"`+state+`"}`).want(200).empty()
	}
	if got := read[api.VM](h.call("GET", "/vm/"+vm+"/status", "").want(200)); got.State != "running" {
		t.Errorf("state %s", got.State)
	}
	for _, body := range []string{`{"state":"sleeping"}`, `{"state":""}`, `{"state":null}`, `{}`, ""} {
		h.call("PATCH", "/vm/"+vm+"/state", body).want(400)
	}
	h.setVM(vm, func(vm *machine.VM) { vm.State = "booting" })
	h.call("PATCH", "/vm/"+vm+"/state?skip_wait_boot=true", `{"state":"Paused"}`).want(409).says("booting")
	h.call("PATCH", "/vm/"+vm+"/state?skip_wait_boot=false", `{"state":"Paused"}`).want(200)
	h.call("PATCH", "/vm/"+ident.New()+"/state", `{"state":"Paused"}`).want(404)
}

func TestSleepAndTerms(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	h.call("POST", "/vm/"+vm+"/sleep", "").want(200).empty()
	meta := func(id string) api.VMMetadata {
		return read[api.VMMetadata](h.call("GET", "/vm/"+id+"/metadata", "").want(200))
	}
	if m := meta(vm); m.State != "sleeping" || m.SleptAt == nil || m.ExpiresAt != nil {
		t.Errorf("%+v", m)
	}
	h.call("POST", "/vm/"+vm+"/sleep", "").want(409).says("only a running VM")
	h.call("POST", "/vm/"+ident.New()+"/sleep", "").want(404)
	h.call("PATCH", "/vm/"+vm+"/terms", `{"sleep_after_seconds":60,"ttl_seconds":null}`).want(200).empty()
	if m := meta(vm); m.SleepAfterSeconds != 60 || m.ExpiresAt != nil {
		t.Errorf("%+v", m)
	}
	h.call("PATCH", "/vm/"+vm+"/terms", `{"ttl_seconds":60}`).want(200).empty()
	if m := meta(vm); m.SleepAfterSeconds != 60 || m.ExpiresAt == nil {
		t.Errorf("%+v", m)
	}
	for _, body := range []string{`{"sleep_after_seconds":9}`, `{"sleep_after_seconds":-1}`, `{"ttl_seconds":-1}`, `{"ttl_seconds":9223372036854775807}`, `{"ttl_seconds":"2h"}`} {
		h.call("PATCH", "/vm/"+vm+"/terms", body).want(400)
	}
	made := read[api.NewVM](h.call("POST", "/vm/new_root", `{"vm_config":{},"ttl_seconds":7200,"sleep_after_seconds":0}`).want(201))
	if m := meta(made.VMID); m.ExpiresAt == nil || !m.ExpiresAt.Equal(m.CreatedAt.Add(2*time.Hour)) {
		t.Errorf("%+v", m)
	}
	children := read[api.NewVMs](h.call("POST", "/vm/"+made.VMID+"/branch?count=2&ttl_seconds=60&sleep_after_seconds=30", "").want(201))
	for _, child := range children.VMs {
		if m := meta(child.VMID); m.ExpiresAt == nil || m.SleepAfterSeconds != 30 {
			t.Errorf("%+v", m)
		}
	}
	h.call("POST", "/vm/"+made.VMID+"/branch?ttl_seconds=-5", "").want(400)
	restored := read[api.NewVM](h.call("POST", "/vm/from_commit", `{"commit_id":"`+children.CommitID+`","ttl_seconds":60}`).want(201))
	if meta(restored.VMID).ExpiresAt == nil {
		t.Error("a restored VM has no end")
	}
	h.call("POST", "/vm/from_commit", `{"commit_id":"`+children.CommitID+`","ttl_seconds":-60}`).want(400)
}

func TestDiskAndLabels(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	h.call("PATCH", "/vm/"+vm+"/disk", `{"fs_size_mib":2048}`).want(200).empty()
	h.call("PATCH", "/vm/"+vm+"/disk", `{"fs_size_mib":2048}`).want(400)
	h.call("PATCH", "/vm/"+vm+"/disk", `{"fs_size_mib":0}`).want(400).says("Invalid filesystem size (must be positive)")
	h.call("PATCH", "/vm/"+vm+"/disk", `{}`).want(400)
	h.setVM(vm, func(vm *machine.VM) { vm.State = "booting" })
	h.call("PATCH", "/vm/"+vm+"/disk?skip_wait_boot=true", `{"fs_size_mib":4096}`).want(409)

	labels := func() map[string]string {
		return read[api.VM](h.call("GET", "/vm/"+vm+"/status", "").want(200)).Labels
	}
	h.call("PATCH", "/vm/"+vm+"/label", `{"labels":{"a":"1","b":"2"}}`).want(200).empty()
	h.call("PATCH", "/vm/"+vm+"/label", `{"labels":{"c":"3"}}`).want(200)
	if diff := cmp.Diff(map[string]string{"c": "3"}, labels()); diff != "" {
		t.Error(diff)
	}
	h.call("PATCH", "/vm/"+vm+"/label", `{"labels":null}`).want(200)
	if got := labels(); len(got) != 0 {
		t.Errorf("labels %v", got)
	}
	h.call("PATCH", "/vm/"+vm+"/label", `{"labels":["a"]}`).want(400)
}

func TestDeleteVM(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	if got := read[api.VMRef](h.call("DELETE", "/vm/vm-"+vm+"?recursive=true", "", "Content-Type", "application/json").want(200)); got.VMID != vm {
		t.Errorf("%+v", got)
	}
	h.call("DELETE", "/vm/"+vm, "").want(404)
	h.call("GET", "/vm/"+vm+"/status", "").want(404)
}

func TestFromCommit(t *testing.T) {
	h := newHarness(t)
	commit := h.newCommit(h.newVM())
	h.call("POST", "/repositories", `{"name":"my-app"}`).want(201)
	h.call("POST", "/repositories/my-app/tags", `{"tag_name":"latest","commit_id":"`+commit+`"}`).want(201)
	for _, body := range []string{
		`{"commit_id":"` + commit + `"}`, `{"commit_id":"` + commit + `","tag_name":null,"ref":null}`, `{"ref":"my-app:latest"}`,
		`{"commit_id":"my-app:latest"}`, // what older clients send
	} {
		if got := read[api.NewVM](h.call("POST", "/vm/from_commit", body).want(201)); got.CommitID != commit || got.VMID == "" {
			t.Errorf("%s: %+v", body, got)
		}
	}
	for body, says := range map[string]string{
		`{}`: "exactly one", `{"commit_id":"` + commit + `","ref":"my-app:latest"}`: "exactly one",
		`{"ref":"my-app"}`: "repo_name:tag_name", `{"ref":"a:b:c"}`: "repo_name:tag_name",
		`{"ref":"acme/my-app:latest"}`: "fork", `{"ref":""}`: "repo_name:tag_name", `{"ref":1}`: "ref",
	} {
		h.call("POST", "/vm/from_commit", body).want(400).says(says)
	}
	h.call("POST", "/vm/from_commit", "").want(400)
	for body, says := range map[string]string{
		`{"commit_id":"` + ident.New() + `"}`: "commit", `{"ref":"my-app:nothing"}`: "tag 'nothing' not found",
		`{"ref":"nothing:latest"}`: "repository 'nothing' not found", `{"tag_name":"plain"}`: "plain", `{"commit_id":"plain"}`: "plain",
		`{"ref":"My-App:latest"}`: "My-App", `{"commit_id":"nothing:latest"}`: "nothing",
	} {
		h.call("POST", "/vm/from_commit", body).want(404).says(says)
	}
	// Another organisation may restore a public commit by its id.
	h.callAs(h.otherKey, "POST", "/vm/from_commit", `{"commit_id":"`+commit+`"}`).want(404)
	h.call("PATCH", "/commits/"+commit, `{"is_public":true}`).want(200)
	h.callAs(h.otherKey, "POST", "/vm/from_commit", `{"commit_id":"`+commit+`"}`).want(201)
}

func TestBranch(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	commit := h.newCommit(vm)
	h.call("POST", "/repositories", `{"name":"app"}`).want(201)
	h.call("POST", "/repositories/app/tags", `{"tag_name":"v1","commit_id":"`+commit+`"}`).want(201)
	for path, count := range map[string]int{
		"/vm/" + vm + "/branch": 1, "/vm/" + vm + "/branch?count=3": 3, "/vm/" + commit + "/branch?count=2": 2,
		"/vm/branch/by_vm/" + vm + "?count=2": 2, "/vm/branch/by_commit/" + commit + "?count=2": 2,
		"/vm/branch/by_ref/app/v1?count=2&keep_paused=true": 2, "/vm/branch/by_ref/app/v1": 1,
	} {
		got := read[api.NewVMs](h.call("POST", path, "").want(201))
		if len(got.VMs) != count || got.VMID != got.VMs[0].VMID || got.CommitID == "" {
			t.Errorf("%s: %+v", path, got)
		}
		for _, child := range got.VMs {
			meta := read[api.VMMetadata](h.call("GET", "/vm/"+child.VMID+"/metadata", "").want(200))
			if meta.State != "running" || meta.ParentCommitID == nil || *meta.ParentCommitID != got.CommitID {
				t.Errorf("%s: child %+v of commit %s", path, meta, got.CommitID)
			}
		}
	}
	if got := read[api.NewVMs](h.call("POST", "/vm/"+vm+"/branch?keep_paused=true", "").want(201)); got.Timing == nil || got.Timing.PausedMS != 2.5 {
		t.Errorf("timing %+v", got.Timing)
	}
	if got := read[api.VM](h.call("GET", "/vm/"+vm, "").want(200)); got.State != "paused" {
		t.Errorf("state %s after keep_paused", got.State)
	}

	before := len(read[[]api.VM](h.call("GET", "/vms", "").want(200)))
	for _, c := range []struct {
		path   string
		status int
		says   string
	}{
		{"/vm/" + vm + "/branch?count=0", 400, "count"},
		{"/vm/" + vm + "/branch?count=-1", 400, "count"},
		{"/vm/" + vm + "/branch?count=99999", 400, "count"},
		{"/vm/" + vm + "/branch?count=x", 400, "count"},
		{"/vm/branch/by_ref/app/v1?count=0", 400, "count"},
		{"/vm/" + ident.New() + "/branch", 404, "VM or commit"},
		{"/vm/branch/by_vm/" + commit, 404, "VM"},
		{"/vm/branch/by_commit/" + vm, 404, "commit"},
		{"/vm/branch/by_ref/app/v2", 404, "tag 'v2'"},
		{"/vm/branch/by_ref/other/v1", 404, "repository 'other'"},
	} {
		a := h.call("POST", c.path, "").want(c.status).says(c.says)
		// The error reads as an empty list of new VMs too.
		if body := read[map[string]any](a); body["vms"] == nil || len(body["vms"].([]any)) != 0 {
			t.Errorf("%s: %s lacks an empty list vms", c.path, a.body)
		}
	}
	h.failNext(errors.New("out of luck"))
	h.call("POST", "/vm/"+vm+"/branch?count=5", "").want(500)
	if after := len(read[[]api.VM](h.call("GET", "/vms", "").want(200))); after != before {
		t.Errorf("%d VMs after failures, %d before", after, before)
	}
}
