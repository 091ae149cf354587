package machine

import (
	"context"
	"net"
	"slices"
	"strings"

	"vers/internal/fault"
)

// AliasLabel is the label that gives a VM a name on the server: ssh NAME@gateway, NAME.vers. It is no identity, and a name
// that two VMs of an organisation have means neither.
const AliasLabel = "vers.alias"

// Find gives a VM by its id, whoever's it is: for those that only find out by it whose it is. Like other methods it
// does not know VMs that are not handed out yet.
func (m *Manager) Find(_ context.Context, id string) (VM, error) {
	m.mu.Lock()
	v := m.vms[id]
	m.mu.Unlock()
	if v != nil {
		if r := v.snapshot(); r.State != string(StateCreating) {
			return r, nil
		}
	}
	return VM{}, fault.NotFoundf("VM '%s' not found", id)
}

// Named gives the VM of an organisation with a name. fault.Conflict if there are several; dead ones do not count.
func (m *Manager) Named(ctx context.Context, orgID, name string) (VM, error) {
	all, err := m.List(ctx, Caller{OrgID: orgID})
	if err != nil {
		return VM{}, err
	}
	all = slices.DeleteFunc(all, func(vm VM) bool { return vm.Labels[AliasLabel] != name || vm.State == string(StateDead) })
	switch len(all) {
	case 1:
		return all[0], nil
	case 0:
	default:
		ids := make([]string, 0, len(all))
		for _, vm := range all {
			ids = append(ids, vm.ID)
		}
		return VM{}, fault.Conflictf("%d VMs are called '%s' (label %s), which do you mean? Take an id: %s", len(all), name, AliasLabel, strings.Join(ids, ", "))
	}
	return VM{}, fault.NotFoundf("no VM of this organisation is called '%s' (label %s)", name, AliasLabel)
}

// DialSSH connects to the SSH server of a running VM's agent.
func (m *Manager) DialSSH(ctx context.Context, c Caller, id string) (net.Conn, error) {
	client, err := m.Guest(ctx, c, id)
	if err != nil {
		return nil, err
	}
	return client.SSH(ctx)
}
