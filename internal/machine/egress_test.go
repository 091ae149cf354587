package machine_test

import (
	"fmt"
	"net"
	"testing"

	"vers/internal/egress"
	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/machinetest"
)

func policy(t *testing.T, text string) *egress.Policy {
	t.Helper()
	p, err := egress.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return &p
}

// shown gives the policies that the network of a VM has: the organisation's and its own, as text.
func shown(r *machinetest.Rig, id string) (organisation, own string) {
	levels, _ := r.Driver.Egress(id)
	for _, level := range levels {
		switch level.Of {
		case "organisation":
			organisation = level.Policy.String()
		case "VM":
			own = level.Policy.String()
		}
	}
	return organisation, own
}

// A VM's policy goes with it: to its children, into its commits, to another organisation, through a restart of versd.
func TestEgressIsInherited(t *testing.T) {
	r := machinetest.New(t, machinetest.Options{})
	want := "none,allow=example.org:443"
	yes := true
	vm, err := r.Manager.Run(t.Context(), r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true,
		Network: machine.NetworkRequest{Egress: policy(t, want), Internal: &yes, Alias: "db"}})
	must(t, err)
	check := func(what string, vm machine.VM, wantOrg string, wantInternal bool) {
		t.Helper()
		if org, own := shown(r, vm.ID); own != want || org != wantOrg {
			t.Errorf("%s: the network has %q of the organisation and %q of the VM, want %q and %q", what, org, own, wantOrg, want)
		}
		if vm.Config.Internal != wantInternal {
			t.Errorf("%s: internal is %v", what, vm.Config.Internal)
		}
	}
	check("run", vm, "", true)
	if vm.Labels[machine.AliasLabel] != "db" {
		t.Errorf("labels of the VM: %v", vm.Labels)
	}

	children, commit, _, err := r.Manager.Branch(t.Context(), r.Acme, vm.ID, machine.BranchRequest{Count: 2})
	must(t, err)
	for _, child := range children {
		check("branch", child, "", true)
		if child.Labels[machine.AliasLabel] != "" {
			t.Errorf("a child has its parent's alias: %v", child.Labels)
		}
	}
	must(t, r.Catalog.SetOrganisationEgress(t.Context(), r.Acme.OrgID, policy(t, "deny=192.0.2.7")))
	restored, err := r.Manager.Restore(t.Context(), r.Acme, commit.ID, machine.NetworkRequest{})
	must(t, err)
	check("restore", restored, "inherit,deny=192.0.2.7", true)
	fromCommit, err := r.Manager.BranchCommit(t.Context(), r.Acme, commit.ID, 1, machine.NetworkRequest{})
	must(t, err)
	check("branch of a commit", fromCommit[0], "inherit,deny=192.0.2.7", true)

	must(t, r.Catalog.SetOrganisationEgress(t.Context(), r.Other.OrgID, policy(t, "none")))
	fork, _, err := r.Manager.Fork(t.Context(), r.Other, commit.ID, unnamed)
	must(t, err)
	check("fork into another organisation", fork, "none", false)

	r.Restart(t)
	for _, vm := range []machine.VM{vm, children[0], restored} {
		check("restart", vm, "inherit,deny=192.0.2.7", true)
	}
	check("restart, fork", fork, "none", false)

	other := "internet"
	changed, err := r.Manager.Restore(t.Context(), r.Acme, commit.ID, machine.NetworkRequest{Egress: policy(t, other)})
	must(t, err)
	if _, own := shown(r, changed.ID); own != other {
		t.Errorf("restore with a policy of its own: %q", own)
	}
}

func TestSetNetwork(t *testing.T) {
	r := machinetest.New(t, machinetest.Options{})
	vm, err := r.Manager.Run(t.Context(), r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
	must(t, err)
	set := func(c machine.Caller, req machine.NetworkRequest) error {
		return r.Manager.SetNetwork(t.Context(), c, vm.ID, req)
	}
	must(t, set(r.Acme, machine.NetworkRequest{Egress: policy(t, "none")}))
	if _, own := shown(r, vm.ID); own != "none" {
		t.Errorf("the network has %q", own)
	}
	if err := set(r.Other, machine.NetworkRequest{Egress: policy(t, "internet")}); !fault.Is(err, fault.NotFound) {
		t.Errorf("another organisation: %v", err)
	}
	if err := set(r.Acme, machine.NetworkRequest{Egress: &egress.Policy{Mode: "open"}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no policy: %v", err)
	}
	if err := set(r.Acme, machine.NetworkRequest{Alias: "../x"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no alias: %v", err)
	}
	r.Restart(t)
	if _, own := shown(r, vm.ID); own != "none" {
		t.Errorf("after a restart the network has %q", own)
	}
	must(t, set(r.Acme, machine.NetworkRequest{Egress: &egress.Policy{}}))
	view, err := r.Manager.Egress(t.Context(), r.Acme, vm.ID)
	if err != nil || len(view.Levels) != 1 {
		t.Errorf("without a policy of its own: %+v, %v", view, err)
	}
}

// What an operator writes into the catalogue reaches VMs that run.
func TestOrganisationEgressReachesRunningVMs(t *testing.T) {
	r := machinetest.New(t, machinetest.Options{})
	mine, err := r.Manager.Run(t.Context(), r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
	must(t, err)
	theirs, err := r.Manager.Run(t.Context(), r.Other, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
	must(t, err)
	for _, text := range []string{"none", "internet,connections=7"} {
		must(t, r.Catalog.SetOrganisationEgress(t.Context(), r.Acme.OrgID, policy(t, text)))
		machinetest.Await(t, "the policy "+text, func() bool {
			org, _ := shown(r, mine.ID)
			return org == text
		})
	}
	must(t, r.Catalog.SetOrganisationEgress(t.Context(), r.Acme.OrgID, nil))
	machinetest.Await(t, "no policy", func() bool {
		org, _ := shown(r, mine.ID)
		return org == ""
	})
	if org, _ := shown(r, theirs.ID); org != "" {
		t.Errorf("the other organisation's VM has %q", org)
	}
}

// Peers are VMs of one organisation where both sides said so.
func TestPeers(t *testing.T) {
	r := machinetest.New(t, machinetest.Options{})
	yes, no := true, false
	run := func(c machine.Caller, internal bool, alias string) machine.VM {
		t.Helper()
		vm, err := r.Manager.Run(t.Context(), c, machine.RunRequest{Config: machinetest.Small, WaitBoot: true,
			Network: machine.NetworkRequest{Internal: &internal, Alias: alias}})
		must(t, err)
		return vm
	}
	web, db, shy := run(r.Acme, true, "web"), run(r.Acme, true, "DB"), run(r.Acme, false, "shy")
	foreign := run(r.Other, true, "db")
	_, peers := r.Driver.Egress(web.ID)
	_, shys := r.Driver.Egress(shy.ID)
	if got := peers.Resolve("db"); len(got) != 1 || got[0] != db.ID {
		t.Errorf("db is %v, want %s", got, db.ID)
	}
	if got := peers.Resolve(db.ID); len(got) != 1 {
		t.Errorf("the id leads to %v", got)
	}
	for what, id := range map[string]string{"one who did not opt in": shy.ID, "another organisation's": foreign.ID, "nobody": "nobody"} {
		if peers.Reaches(id) || len(peers.Resolve(id)) != 0 {
			t.Errorf("%s is reached", what)
		}
		if _, err := peers.Dial(t.Context(), id, 80); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s is dialled: %v", what, err)
		}
	}
	if shys.Member() || len(shys.Resolve("db")) != 0 || shys.Reaches(db.ID) {
		t.Error("one who did not opt in reaches others")
	}
	if len(peers.All()) != 2 {
		t.Errorf("the peers are %v", peers.All())
	}

	r.Driver.Serve(5432, func(_ string, c net.Conn) { fmt.Fprint(c, "db") })
	must(t, r.Manager.Sleep(t.Context(), r.Acme, db.ID, false))
	if got := peers.Resolve("db"); len(got) != 1 || !peers.Reaches(db.ID) {
		t.Errorf("asleep, db is %v", got)
	}
	conn, err := peers.Dial(t.Context(), db.ID, 5432)
	must(t, err)
	must(t, conn.Close())
	if vm, err := r.Manager.Get(t.Context(), r.Acme, db.ID); err != nil || vm.State != string(machine.StateRunning) {
		t.Errorf("dialled by a peer it is %s, %v", vm.State, err)
	}

	second := run(r.Acme, true, "db")
	if got := peers.Resolve("db"); len(got) != 0 {
		t.Errorf("a name that two have is %v", got)
	}
	must(t, r.Manager.Delete(t.Context(), r.Acme, second.ID, false))

	rechecks := r.Driver.Rechecks(web.ID)
	must(t, r.Manager.SetNetwork(t.Context(), r.Acme, db.ID, machine.NetworkRequest{Internal: &no}))
	if peers.Reaches(db.ID) || len(peers.Resolve("db")) != 0 {
		t.Error("one who left is reached")
	}
	if r.Driver.Rechecks(web.ID) == rechecks {
		t.Error("connections to one who left are not looked at")
	}
	must(t, r.Manager.SetNetwork(t.Context(), r.Acme, shy.ID, machine.NetworkRequest{Internal: &yes}))
	if !shys.Reaches(web.ID) || !peers.Reaches(shy.ID) {
		t.Error("one who came does not take part")
	}
	must(t, r.Manager.Delete(t.Context(), r.Acme, shy.ID, false))
	if peers.Reaches(shy.ID) {
		t.Error("a deleted VM is reached")
	}
}

// Counters of VMs that are gone stay with their organisation.
func TestTraffic(t *testing.T) {
	r := machinetest.New(t, machinetest.Options{})
	first, err := r.Manager.Run(t.Context(), r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
	must(t, err)
	second, err := r.Manager.Run(t.Context(), r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
	must(t, err)
	r.Driver.Send(first.ID, 100)
	r.Driver.Send(second.ID, 20)
	must(t, r.Manager.Delete(t.Context(), r.Acme, first.ID, false))
	r.Machine(t, second.ID).Crash()
	r.AwaitState(t, r.Acme, second.ID, machine.StateDead)
	must(t, r.Manager.Delete(t.Context(), r.Acme, second.ID, false))
	third, err := r.Manager.Run(t.Context(), r.Acme, machine.RunRequest{Config: machinetest.Small, WaitBoot: true})
	must(t, err)
	r.Driver.Send(third.ID, 3)
	traffic, err := r.Manager.Traffic(t.Context())
	must(t, err)
	if traffic["acme"].BytesOut != 123 || traffic["other"].BytesOut != 0 {
		t.Errorf("%+v", traffic)
	}
}
