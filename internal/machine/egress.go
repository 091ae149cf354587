package machine

import (
	"context"
	"maps"
	"time"

	"vers/internal/catalog"
	"vers/internal/egress"
	"vers/internal/fault"
	"vers/internal/ident"
)

// NetworkRequest changes what a VM may reach and who reaches it. The zero value leaves all as it is, or is inherited.
type NetworkRequest struct {
	Egress   *egress.Policy // replaces the VM's own policy
	Internal *bool          // whether it takes part in the organisation's internal network (peers.go)
	Alias    string         // its name on the server, kept as the label AliasLabel; "" none, or the present one
}

// maxAlias is what fits between two dots of a DNS name.
const maxAlias = 63

// Check refuses what no VM can have.
func (n NetworkRequest) Check() error {
	if n.Egress != nil {
		if err := n.Egress.ValidateBelow(); err != nil {
			return fault.Invalidf("%w", err)
		}
	}
	if n.Alias != "" && !ident.ValidName(n.Alias, maxAlias) {
		return fault.Invalidf("alias %q is not valid: use 1 to %d letters, digits, '-', '_' or '.'", n.Alias, maxAlias)
	}
	return nil
}

// apply gives configuration and labels as asked for. The labels are copied.
func (n NetworkRequest) apply(config *catalog.VMConfig, labels *map[string]string) {
	if n.Egress != nil {
		config.Egress = n.Egress
		if n.Egress.IsZero() {
			config.Egress = nil
		}
	}
	if n.Internal != nil {
		config.Internal = *n.Internal
	}
	if n.Alias != "" {
		named := maps.Clone(*labels)
		if named == nil {
			named = map[string]string{}
		}
		named[AliasLabel] = n.Alias
		*labels = named
	}
}

// EgressView is what a VM may reach, and what it did.
type EgressView struct {
	Levels   egress.Levels // the server's first, the VM's own last; a level that says nothing is missing
	Internal bool
	Traffic  egress.Counters  // since versd took the VM over
	Refusals []egress.Refusal // the newest first
}

// Egress shows what a VM may reach.
func (m *Manager) Egress(ctx context.Context, c Caller, vmID string) (EgressView, error) {
	v, err := m.find(c, vmID)
	if err != nil {
		return EgressView{}, err
	}
	r := v.snapshot()
	view := EgressView{Internal: r.Config.Internal}
	if view.Levels, err = m.levels(ctx, r); err != nil {
		return EgressView{}, err
	}
	if network := v.openNetwork(); network != nil {
		view.Traffic, view.Refusals = network.Traffic(), network.Refusals()
	}
	return view, nil
}

// SetNetwork changes what a VM may reach. New connections follow it when it returns; open ones that are not permitted any
// more are cut. A VM that is booting is waited for.
func (m *Manager) SetNetwork(ctx context.Context, c Caller, vmID string, req NetworkRequest) error {
	if err := req.Check(); err != nil {
		return err
	}
	v, err := m.find(c, vmID)
	if err != nil {
		return err
	}
	unlock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.update(ctx, v, func(r *VM) { req.apply(&r.Config, &r.Labels) }); err != nil {
		return err
	}
	if err := m.applyEgress(context.WithoutCancel(ctx), v); err != nil {
		return err
	}
	if req.Internal != nil {
		m.recheck(c.OrgID)
	}
	return nil
}

// levels are the policies that a VM is under.
func (m *Manager) levels(ctx context.Context, r VM) (egress.Levels, error) {
	organisation, err := m.Catalog.OrganisationEgress(ctx, r.OrgID)
	if err != nil {
		return nil, err
	}
	return egress.Stack(m.ServerEgress, organisation, r.Config.Egress), nil
}

// openNetworkOf opens the network of a VM with the policy that it is under: no packet passes before.
func (m *Manager) openNetworkOf(ctx context.Context, v *vm, spec Spec) (Network, error) {
	levels, err := m.levels(ctx, v.snapshot())
	if err != nil {
		return nil, err
	}
	return m.Networks(ctx, NetworkSpec{VMID: spec.ID, Dir: spec.Dir, UID: spec.UID, GID: spec.GID, Egress: levels, Peers: Peers{m, v}})
}

// applyEgress gives an open network the policy that holds now. One at a time for each VM, so that what was read last is
// what holds.
func (m *Manager) applyEgress(ctx context.Context, v *vm) error {
	v.policy.Lock()
	defer v.policy.Unlock()
	network := v.openNetwork()
	if network == nil {
		return nil
	}
	levels, err := m.levels(ctx, v.snapshot())
	if err == nil {
		network.SetEgress(levels)
	}
	return err
}

// openNetwork is the network of a VM, nil if it has none yet.
func (v *vm) openNetwork() Network {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.network
}

// organisationEvery is how often the policies of organisations are looked at: `versd org egress` writes them into the
// catalogue from outside.
const organisationEvery = time.Second

// followOrganisations applies changed policies of organisations to their VMs.
func (m *Manager) followOrganisations(known map[string]string) {
	tick := time.NewTicker(organisationEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.life.Done():
			return
		case <-tick.C:
		}
		now, err := m.Catalog.OrganisationEgresses(m.life)
		if err != nil {
			continue // again in a moment
		}
		if maps.Equal(known, now) {
			continue
		}
		if m.applyChanged(known, now) {
			known = now
		}
	}
}

// applyChanged gives all VMs of organisations whose policy is another one now that policy; false if some VM could not get
// it.
func (m *Manager) applyChanged(before, now map[string]string) bool {
	good := true
	for _, v := range m.all() {
		org := v.snapshot().OrgID
		if before[org] == now[org] {
			continue
		}
		if err := m.applyEgress(m.life, v); err != nil {
			good = false
			if m.life.Err() == nil {
				m.Logger.Error("egress policy of the organisation not applied yet", "vm", v.snapshot().ID, "error", err)
			}
		}
	}
	return good
}

// all gives the VMs in the manager's care.
func (m *Manager) all() []*vm {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*vm, 0, len(m.vms))
	for _, v := range m.vms {
		all = append(all, v)
	}
	return all
}

// closeNetwork closes the network of a VM and keeps its counters for its organisation. The next one is counted by itself
// (attach).
func (m *Manager) closeNetwork(v *vm) {
	network := v.openNetwork()
	if network == nil {
		return
	}
	network.Close()
	traffic := network.Traffic()
	m.trafficMu.Lock()
	defer m.trafficMu.Unlock()
	if v.counted {
		return
	}
	v.counted = true
	org := v.snapshot().OrgID
	m.traffic[org] = m.traffic[org].Add(traffic)
}

// organisationsNamed is how many organisations Traffic tells apart: where everybody may log in there are many.
const organisationsNamed = 200

// Traffic sums what the VMs of each organisation sent and received since versd started, by the organisation's name. VMs
// that are gone count too, organisations that are gone do not. The first ones made are told apart, the others are summed
// under "".
func (m *Manager) Traffic(ctx context.Context) (map[string]egress.Counters, error) {
	organisations, err := m.Catalog.Organisations(ctx)
	if err != nil {
		return nil, err
	}
	m.trafficMu.Lock()
	defer m.trafficMu.Unlock()
	sums := maps.Clone(m.traffic)
	for _, v := range m.all() {
		if network := v.openNetwork(); network != nil && !v.counted {
			org := v.snapshot().OrgID
			sums[org] = sums[org].Add(network.Traffic())
		}
	}
	named := map[string]egress.Counters{}
	for i, org := range organisations {
		name := org.Name
		if i >= organisationsNamed {
			name = ""
		}
		named[name] = named[name].Add(sums[org.ID])
	}
	return named, nil
}
