package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/config"
	"vers/internal/egress"
	"vers/internal/fault"
)

// networkFlags are the flags of commands that make VMs.
type networkFlags struct {
	egress   []string
	internal bool
	given    func(names ...string) bool // nil: none was
}

func (n *networkFlags) add(cmd *cobra.Command) {
	n.given = givenFlags(cmd)
	cmd.Flags().StringArrayVar(&n.egress, "egress", nil, "what the VM may reach: none, internet, allow=host:port,…, deny=…, bandwidth=10MiB, connections=50 (repeatable: the parts are joined)")
	cmd.Flags().BoolVar(&n.internal, "internal", false, "reach VMs of the organisation as <alias>.internal, and be reached; both sides have to")
}

// options reads the flags over what a project's file says; alias is the VM's, if it has one.
func (n *networkFlags) options(project config.Project, alias string) (o api.NetworkOptions, err error) {
	given := n.given
	if given == nil {
		given = func(...string) bool { return false }
	}
	switch {
	case given("egress"):
		var policy egress.Policy
		if policy, err = parseEgress(n.egress); err != nil {
			return o, err
		}
		o.Egress = sendPolicy(policy)
	case project.Egress != nil:
		o.Egress = sendPolicy(*project.Egress)
	}
	if given("internal") {
		o.Internal = &n.internal
	} else if project.Internal {
		o.Internal = &project.Internal
	}
	if o.Internal != nil && *o.Internal && alias != "" {
		o.Alias = &alias
	}
	return o, nil
}

func parseEgress(parts []string) (egress.Policy, error) {
	policy, err := egress.Parse(parts...)
	if err != nil {
		err = fault.Invalidf("%w", err)
	}
	return policy, err
}

func sendPolicy(p egress.Policy) *api.EgressPolicy {
	texts := func(rules []egress.Rule) (list []string) {
		for _, rule := range rules {
			list = append(list, rule.String())
		}
		return list
	}
	return &api.EgressPolicy{Mode: string(p.Mode), Allow: texts(p.Allow), Deny: texts(p.Deny),
		BytesPerSecond: p.BytesPerSecond, ConnectionsPerSecond: p.ConnectionsPerSecond}
}

type egressOptions struct {
	target string
	set    []string
	clear  bool
	alias  string
	flags  networkFlags
	format formatFlags
}

func (a *App) egressCommand() *cobra.Command {
	var o egressOptions
	cmd := &cobra.Command{
		Use: "egress [vm|alias]", Short: "Show or change what a VM may reach",
		Long: `Show the policies that a VM is under, what went over its network card, and what was refused; with flags,
change its own policy first. A change holds at once: open connections that it does not permit are cut.

A policy is written in parts with commas between them:

  none | internet | inherit     the mode; inherit is what the organisation permits
  allow=RULE,RULE,...           permitted besides; without a mode nothing else is
  deny=RULE,RULE,...            refused, whatever is allowed
  bandwidth=10MiB               bytes per second, in each direction
  connections=50                that it may begin, per second

A rule is an address, a network or a name, with or without ports: 10.0.0.0/8:80,443, example.org:443,
*.example.org. Names are good for the addresses that the VM's resolver gave it.

A VM only narrows what its organisation and the server permit. Branches and restores inherit its policy.`,
		Example: `  vers egress dev
  vers egress dev --set none
  vers egress dev --set allow=*.debian.org:80,443,github.com:443
  vers egress dev --set internet,deny=192.0.2.0/24 --set bandwidth=5MiB
  vers egress dev --clear
  vers egress db --internal --alias db       # db.internal, for VMs that are --internal too`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target = optional(args)
			return a.egress(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeVMs,
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.set, "set", nil, "the VM's new policy (repeatable: the parts are joined)")
	f.BoolVar(&o.clear, "clear", false, "no policy of its own: what the organisation permits")
	f.BoolVar(&o.flags.internal, "internal", false, "reach VMs of the organisation as <alias>.internal, and be reached (--internal=false: not)")
	f.StringVar(&o.alias, "alias", "", "name for VMs of the organisation")
	o.flags.given = givenFlags(cmd)
	o.format.addQuiet(cmd, "print the policy of the VM only")
	return cmd
}

// change is what the flags ask for.
func (o egressOptions) change() (n api.NetworkOptions, err error) {
	switch {
	case o.clear && len(o.set) > 0:
		return n, fault.Invalidf("--set and --clear are opposites; give one")
	case o.clear:
		n.Egress = &api.EgressPolicy{}
	case len(o.set) > 0:
		policy, err := parseEgress(o.set)
		if err != nil {
			return n, err
		}
		n.Egress = sendPolicy(policy)
	}
	if o.flags.given("internal") {
		n.Internal = &o.flags.internal
	}
	if o.flags.given("alias") {
		n.Alias = &o.alias
	}
	return n, nil
}

func (a *App) egress(ctx context.Context, o egressOptions) error {
	mode, client, err := a.begin(o.format)
	if err != nil {
		return err
	}
	change, err := o.change()
	if err != nil {
		return err
	}
	t, err := a.target(ctx, o.target)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "asking for the VM's network")
	defer cancel()
	var shown api.VMEgress
	if change.IsZero() {
		shown, err = client.Egress(ctx, t.ID)
	} else {
		shown, err = client.SetEgress(ctx, t.ID, change)
	}
	if err != nil {
		return t.missing(err)
	}
	return a.show(mode, ownPolicy(shown), shown, func() { a.printEgress(shown) })
}

// ownPolicy is the VM's own policy as it is typed.
func ownPolicy(e api.VMEgress) string {
	for _, level := range e.Levels {
		if level.Of == "VM" {
			return level.Text
		}
	}
	return "inherit"
}

func (a *App) printEgress(e api.VMEgress) {
	var lines [][2]string
	for _, level := range e.Levels {
		lines = append(lines, [2]string{"Policy of the " + level.Of, level.Text})
	}
	if ownPolicy(e) == "inherit" {
		lines = append(lines, [2]string{"Policy of the VM", "inherit"})
	}
	internal := "no"
	if e.Internal {
		internal = "yes, as " + strings.Join(e.Names, ", ")
	}
	lines = append(lines, [2]string{"Internal network", internal})
	a.fields(append(lines, trafficFields(e.Traffic)...))()
	if len(e.Refusals) == 0 {
		return
	}
	fmt.Fprintln(a.Streams.Out)
	var rows [][]string
	for _, r := range e.Refusals {
		rows = append(rows, []string{when(r.Time), r.Protocol, r.Destination, strconv.FormatUint(r.Count, 10), r.Reason})
	}
	a.Streams.table([]string{"REFUSED", "PROTOCOL", "DESTINATION", "TIMES", "WHY"}, rows)
}

// trafficFields shows counters in few lines.
func trafficFields(c api.Traffic) [][2]string {
	way := func(bytes, packets, connections uint64) string {
		return fmt.Sprintf("%s in %d packets, %d connections", bytesText(int64(bytes)), packets, connections)
	}
	return [][2]string{
		{"Sent", way(c.BytesOut, c.PacketsOut, c.ConnectionsOut)},
		{"Received", way(c.BytesIn, c.PacketsIn, c.ConnectionsIn)},
		{"Refused", fmt.Sprintf("%d, held up or ended by limits %d, spoofed frames %d", c.Refused, c.Limited, c.Spoofed)},
	}
}
