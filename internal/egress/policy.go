package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Mode is what a policy does with a destination that no rule names.
type Mode string

// The modes.
const (
	ModeInherit  Mode = ""         // what the level above permits; for the server's own policy: internet
	ModeInternet Mode = "internet" // addresses of the public internet only
	ModeNone     Mode = "none"     // nothing, and no names either but those of the allow list
)

// Bounds of a policy: it comes from users, is asked about every connection and kept with every commit.
const (
	maxRules       = 256       // in one list
	maxConnections = 1_000_000 // per second
	minBandwidth   = 1 << 10   // bytes per second
	maxBandwidth   = 1 << 40   // bytes per second
	maxExpression  = 32 << 10  // characters of a policy as it is typed
	maxNameLength  = 253       // characters of a DNS name
	maxLabelLength = 63        // characters between two dots
	maxPorts       = 64        // ranges of ports in one rule
)

// The networks that every VM has of its own (internal/netstack). No rule opens them.
const (
	MainNetwork    = "10.77.0.0/24"
	ControlNetwork = "169.254.77.0/30"
)

// Policy is one level: what a server, an organisation or a VM permits. The zero value of an organisation's or VM's policy
// permits what the level above does; that of a server permits the public internet.
type Policy struct {
	Mode  Mode   `json:"mode,omitempty"`
	Allow []Rule `json:"allow,omitempty"`
	Deny  []Rule `json:"deny,omitempty"`
	// BytesPerSecond bounds what the connections of each VM carry, in each direction. 0: this level has no bound.
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	// ConnectionsPerSecond bounds how many connections and UDP flows each VM begins. 0: this level has no bound.
	ConnectionsPerSecond int64 `json:"connections_per_second,omitempty"`
}

// New reads a policy as it is written in a configuration. mode may be empty. For the rules see ParseRule.
func New(mode string, allow, deny []string) (Policy, error) {
	policy := Policy{Mode: Mode(mode)}
	for _, list := range []struct {
		name  string
		texts []string
		rules *[]Rule
	}{{"allow", allow, &policy.Allow}, {"deny", deny, &policy.Deny}} {
		for _, text := range list.texts {
			rule, err := ParseRule(text)
			if err != nil {
				return Policy{}, fmt.Errorf("egress %s list: %w", list.name, err)
			}
			*list.rules = append(*list.rules, rule)
		}
	}
	return policy, policy.Validate()
}

// Validate refuses what cannot be a policy, or is beyond the bounds.
func (p Policy) Validate() error {
	switch p.Mode {
	case ModeInherit, ModeInternet, ModeNone:
	default:
		return fmt.Errorf("egress mode %q is unknown; use %q or %q", p.Mode, ModeInternet, ModeNone)
	}
	switch {
	case len(p.Allow) > maxRules || len(p.Deny) > maxRules:
		return fmt.Errorf("an egress list has at most %d rules; join addresses into networks, or names with *", maxRules)
	case p.BytesPerSecond != 0 && (p.BytesPerSecond < minBandwidth || p.BytesPerSecond > maxBandwidth):
		return fmt.Errorf("egress bandwidth is %d bytes per second; %d to %d are possible, 0 is no limit", p.BytesPerSecond, minBandwidth, int64(maxBandwidth))
	case p.ConnectionsPerSecond < 0 || p.ConnectionsPerSecond > maxConnections:
		return fmt.Errorf("egress connections per second are %d; 1 to %d are possible, 0 is no limit", p.ConnectionsPerSecond, maxConnections)
	}
	return nil
}

// ValidateBelow is Validate for the policy of an organisation or a VM, where an allow list without a mode has no meaning.
func (p Policy) ValidateBelow() error {
	if p.Mode == ModeInherit && len(p.Allow) > 0 {
		return errors.New("an egress allow list needs a mode: none permits only what is in the list, internet the public internet too")
	}
	return p.Validate()
}

// IsZero reports whether the policy says nothing.
func (p Policy) IsZero() bool {
	return p.Mode == ModeInherit && len(p.Allow)+len(p.Deny) == 0 && p.BytesPerSecond == 0 && p.ConnectionsPerSecond == 0
}

// flow is what a policy is asked about.
type flow struct {
	addr  netip.Addr // unmapped, without zone
	port  uint16
	names []string // by which the guest knows addr, see Levels.Check
}

// denies returns the deny rule that covers f, nil if there is none.
func (p Policy) denies(f flow) *Rule {
	if i := slices.IndexFunc(p.Deny, func(r Rule) bool { return r.covers(f) }); i >= 0 {
		return &p.Deny[i]
	}
	return nil
}

// checkAsServer decides about a flow that is possible at all. Steps 2 to 5 of Levels.
func (p Policy) checkAsServer(f flow, isHost HostAddress) error {
	if rule := p.denies(f); rule != nil {
		return fmt.Errorf("the deny list has %s", rule)
	}
	own, err := isHost(f.addr)
	if err != nil {
		return fmt.Errorf("cannot tell whether %s is an address of the host: %w", f.addr, err)
	}
	public := notPublic(f.addr) == "" && !own
	for _, rule := range p.Allow {
		if rule.covers(f) && (rule.name == "" && rule.preciseEnough(f.addr, own) || rule.name != "" && public) {
			return nil
		}
	}
	switch p.Mode {
	case ModeNone:
		return p.notAllowed()
	case ModeInherit, ModeInternet:
		return closed(f.addr, own)
	}
	return fmt.Errorf("egress mode %q is unknown", p.Mode)
}

// checkBelow decides about a flow that the level above permits.
func (p Policy) checkBelow(f flow) error {
	if rule := p.denies(f); rule != nil {
		return fmt.Errorf("the deny list has %s", rule)
	}
	if p.Mode == ModeInherit || slices.ContainsFunc(p.Allow, func(r Rule) bool { return r.covers(f) }) {
		return nil
	}
	switch p.Mode {
	case ModeNone:
		return p.notAllowed()
	case ModeInternet:
		return closed(f.addr, false)
	}
	return fmt.Errorf("egress mode %q is unknown", p.Mode)
}

func (p Policy) notAllowed() error {
	if len(p.Allow) == 0 {
		return errors.New("egress is off")
	}
	return errors.New("the allow list does not have it")
}

// closed says why an address is none of the public internet, nil if it is.
func closed(addr netip.Addr, own bool) error {
	if reason := notPublic(addr); reason != "" {
		return fmt.Errorf("%s is %s", addr, reason)
	}
	if own {
		return fmt.Errorf("%s is an address of the host", addr)
	}
	return nil
}

// resolves decides about a name.
func (p Policy) resolves(name string) error {
	for _, rule := range p.Deny {
		if len(rule.ports) == 0 && rule.matches(name) {
			return fmt.Errorf("the deny list has %s", rule)
		}
	}
	if p.Mode != ModeNone || slices.ContainsFunc(p.Allow, func(r Rule) bool { return r.matches(name) }) {
		return nil
	}
	return p.notAllowed()
}
