package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/egress"
	"vers/internal/fault"
	"vers/internal/machine"
)

func (s *Server) routeEgress() {
	add(s, operation{method: http.MethodGet, path: "/vm/{id}/egress", id: "vm-egress",
		summary: "[ours] What a VM may reach, what it sent and received, and what was refused", tag: "Network"}, s.vmEgress)
	add(s, operation{method: http.MethodPut, path: "/vm/{id}/egress", id: "set-vm-egress",
		summary: "[ours] Change what a VM may reach, at once", tag: "Network"}, s.setVMEgress)
}

func (s *Server) vmEgress(ctx context.Context, in *VMInput) (*output[api.VMEgress], error) {
	vm, err := s.vm(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	view, err := s.Machines.Egress(ctx, callerOf(ctx), vm.ID)
	if err != nil {
		return nil, err
	}
	return reply(showEgress(vm, view)), nil
}

type egressInput struct {
	VMInput
	Body api.NetworkOptions
}

func (s *Server) setVMEgress(ctx context.Context, in *egressInput) (*output[api.VMEgress], error) {
	id, err := vmID(in.ID)
	if err != nil {
		return nil, err
	}
	network, err := readNetwork(in.Body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	if err := s.Machines.SetNetwork(ctx, callerOf(ctx), id, network); err != nil {
		return nil, err
	}
	return s.vmEgress(ctx, &in.VMInput)
}

// readNetwork reads what a request says about the network.
func readNetwork(o api.NetworkOptions) (machine.NetworkRequest, error) {
	n := machine.NetworkRequest{Internal: o.Internal}
	if o.Alias != nil {
		if *o.Alias == "" {
			return n, fault.Invalidf("alias is empty; leave it out, or name the VM")
		}
		n.Alias = *o.Alias
	}
	if o.Egress != nil {
		policy, err := egress.New(o.Egress.Mode, o.Egress.Allow, o.Egress.Deny)
		if err != nil {
			return n, fault.Invalidf("%w", err)
		}
		policy.BytesPerSecond, policy.ConnectionsPerSecond = o.Egress.BytesPerSecond, o.Egress.ConnectionsPerSecond
		n.Egress = &policy
	}
	return n, n.Check()
}

// branchNetwork reads the body of a branch call, which may be missing.
func branchNetwork(body *api.BranchRequest, count int) (machine.NetworkRequest, error) {
	if body == nil {
		return machine.NetworkRequest{}, nil
	}
	if body.Alias != nil && count > 1 {
		return machine.NetworkRequest{}, fault.Invalidf("alias names one VM, but count is %d", count)
	}
	return readNetwork(body.NetworkOptions)
}

func showPolicy(p egress.Policy) api.EgressPolicy {
	texts := func(rules []egress.Rule) (list []string) {
		for _, rule := range rules {
			list = append(list, rule.String())
		}
		return list
	}
	return api.EgressPolicy{Mode: string(p.Mode), Allow: texts(p.Allow), Deny: texts(p.Deny),
		BytesPerSecond: p.BytesPerSecond, ConnectionsPerSecond: p.ConnectionsPerSecond}
}

func showTraffic(c egress.Counters) api.Traffic {
	return api.Traffic{BytesOut: c.BytesOut, BytesIn: c.BytesIn, PacketsOut: c.PacketsOut, PacketsIn: c.PacketsIn,
		ConnectionsOut: c.ConnectionsOut, ConnectionsIn: c.ConnectionsIn, Refused: c.Refused, Limited: c.Limited, Spoofed: c.Spoofed}
}

func showEgress(vm machine.VM, view machine.EgressView) api.VMEgress {
	shown := api.VMEgress{VMID: vm.ID, Internal: view.Internal, Traffic: showTraffic(view.Traffic),
		Levels: []api.EgressLevel{}, Names: []string{}, Refusals: []api.EgressRefusal{}}
	if own := vm.Config.Egress; own != nil {
		shown.Policy = showPolicy(*own)
	}
	for _, level := range view.Levels {
		shown.Levels = append(shown.Levels, api.EgressLevel{Of: level.Of, Policy: showPolicy(level.Policy), Text: level.Policy.String()})
	}
	if view.Internal {
		if alias := vm.Labels[machine.AliasLabel]; alias != "" {
			shown.Names = append(shown.Names, alias+".internal")
		}
		shown.Names = append(shown.Names, vm.ID+".internal")
	}
	for _, r := range view.Refusals {
		shown.Refusals = append(shown.Refusals, api.EgressRefusal{Time: r.Time.UTC(), Protocol: r.Protocol, Destination: r.Destination, Reason: r.Reason, Count: r.Count})
	}
	return shown
}
