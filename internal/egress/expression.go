package egress

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Parse reads a policy as it is typed. Each text has parts with commas between them:
//
//	none | internet | inherit       the mode
//	allow=RULE,RULE,…               permitted too; without a mode, nothing else is
//	deny=RULE,RULE,…                refused, whatever is allowed
//	bandwidth=10MiB                 bytes per second, each way
//	connections=50                  per second
//
// For example "none", "internet,deny=*.example.org", "allow=example.org:80,443,10.0.0.5:5432,bandwidth=1MiB".
func Parse(texts ...string) (Policy, error) {
	p := parser{}
	for _, text := range texts {
		if len(text) > maxExpression {
			return Policy{}, fmt.Errorf("the egress policy has more than %d characters", maxExpression)
		}
		p.list = nil // a list ends with its text
		for part := range strings.SplitSeq(text, ",") {
			if err := p.part(strings.TrimSpace(part)); err != nil {
				return Policy{}, err
			}
		}
	}
	return p.policy()
}

// parser collects the parts. Rules are joined as text first, since the ports of one have commas too.
type parser struct {
	modes       []Mode
	allow, deny []string
	list        *[]string // the one that further parts belong to; nil: none
	bandwidth   int64
	connections int64
}

func (p *parser) part(text string) error {
	key, value, isPair := strings.Cut(text, "=")
	switch {
	case isPair && key == "allow", isPair && key == "deny":
		p.list = &p.allow
		if key == "deny" {
			p.list = &p.deny
		}
		*p.list = append(*p.list, value)
		return nil
	case isPair && key == "bandwidth":
		p.list = nil
		return setOnce(&p.bandwidth, key, value, ParseBandwidth)
	case isPair && key == "connections":
		p.list = nil
		return setOnce(&p.connections, key, value, parseCount)
	case isPair:
		return fmt.Errorf("egress: %q is unknown; allow=, deny=, bandwidth= and connections= are possible", shorten(key))
	case text == "none" || text == "internet" || text == "inherit":
		p.list = nil
		p.modes = append(p.modes, Mode(strings.TrimPrefix(text, "inherit")))
		return nil
	case p.list == nil:
		return fmt.Errorf("egress: %q is no policy; use none, internet, inherit, allow=host:port,… or deny=host:port,…", shorten(text))
	}
	list := *p.list
	if last := &list[len(list)-1]; isPorts(text) && strings.Contains(*last, ":") {
		*last += "," + text
		return nil
	}
	*p.list = append(list, text)
	return nil
}

// isPorts tells further ports of a rule from another rule.
func isPorts(text string) bool { return text != "" && strings.Trim(text, "0123456789-") == "" }

func setOnce(to *int64, key, value string, parse func(string) (int64, error)) error {
	if *to != 0 {
		return fmt.Errorf("egress: %s is given twice", key)
	}
	n, err := parse(value)
	if err != nil {
		return fmt.Errorf("egress: %s: %w", key, err)
	}
	*to = n
	return nil
}

func (p *parser) policy() (Policy, error) {
	var mode Mode
	switch {
	case len(p.modes) > 1:
		return Policy{}, errors.New("egress: more than one of none, internet and inherit is given")
	case len(p.modes) == 1:
		mode = p.modes[0]
	case len(p.allow) > 0:
		mode = ModeNone
	}
	policy, err := New(string(mode), p.allow, p.deny)
	if err != nil {
		return Policy{}, err
	}
	policy.BytesPerSecond, policy.ConnectionsPerSecond = p.bandwidth, p.connections
	return policy, policy.ValidateBelow()
}

func parseCount(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 || n > maxConnections {
		return 0, fmt.Errorf("%q is no number from 1 to %d", shorten(text), maxConnections)
	}
	return n, nil
}

// units of bandwidth, the largest first.
var units = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// ParseBandwidth reads a number of bytes per second, like 500KiB or 10MiB.
func ParseBandwidth(text string) (int64, error) {
	number, factor := strings.TrimSuffix(text, "/s"), int64(1)
	for _, unit := range units {
		if rest, ok := strings.CutSuffix(number, unit.name); ok {
			number, factor = rest, unit.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 1 || n > maxBandwidth/factor || n*factor < minBandwidth {
		return 0, fmt.Errorf("%q is no number of bytes per second from %d to 1024GiB, like 500KiB or 10MiB", shorten(text), minBandwidth)
	}
	return n * factor, nil
}

// String gives the policy in the form that Parse reads.
func (p Policy) String() string {
	parts := []string{string(p.Mode)}
	if p.Mode == ModeInherit {
		parts[0] = "inherit"
	}
	for _, list := range []struct {
		key   string
		rules []Rule
	}{{"allow=", p.Allow}, {"deny=", p.Deny}} {
		for i, rule := range list.rules {
			text := rule.String()
			if i == 0 {
				text = list.key + text
			}
			parts = append(parts, text)
		}
	}
	if n := p.BytesPerSecond; n != 0 {
		text := strconv.FormatInt(n, 10)
		for _, unit := range units {
			if n%unit.bytes == 0 {
				text = strconv.FormatInt(n/unit.bytes, 10) + unit.name
				break
			}
		}
		parts = append(parts, "bandwidth="+text)
	}
	if p.ConnectionsPerSecond != 0 {
		parts = append(parts, "connections="+strconv.FormatInt(p.ConnectionsPerSecond, 10))
	}
	return strings.Join(parts, ",")
}
