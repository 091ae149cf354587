package egress

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPolicyCheck(t *testing.T) {
	const own4, own6 = "93.184.216.99", "2606:2800::99" // public addresses that the host has
	isHost := func(addr netip.Addr) (bool, error) {
		return addr == netip.MustParseAddr(own4) || addr == netip.MustParseAddr(own6) ||
			addr == netip.MustParseAddr("192.168.1.10"), nil
	}
	type rules = []string
	tests := []struct {
		name        string
		mode        string
		allow, deny rules
		network     string
		dst         string
		want        string // empty: permitted; else part of the reason
	}{
		{name: "internet", dst: "93.184.216.34:443"},
		{name: "public, udp", network: "udp", dst: "9.9.9.9:53"},
		{name: "public, IPv6", dst: "[2606:2800:220:1::1]:443"},
		{name: "public, mapped", dst: "[::ffff:93.184.216.34]:443"},
		{name: "other protocol", network: "icmp", dst: "93.184.216.34:443", want: "not forwarded"},
		{name: "port 0", dst: "93.184.216.34:0", want: "no destination"},

		{name: "loopback", dst: "127.0.0.1:80", want: "loopback"},
		{name: "loopback, elsewhere in the block", dst: "127.8.9.10:80", want: "loopback"},
		{name: "loopback, mapped", dst: "[::ffff:127.0.0.1]:80", want: "loopback"},
		{name: "loopback, mapped in hex", dst: "[::ffff:7f00:1]:80", want: "loopback"},
		{name: "loopback, IPv6", dst: "[::1]:80", want: "not a public"},
		{name: "loopback, compatible", dst: "[::127.0.0.1]:80", want: "not a public"},
		{name: "metadata", dst: "169.254.169.254:80", want: "link-local"},
		{name: "metadata, mapped", dst: "[::ffff:169.254.169.254]:80", want: "link-local"},
		{name: "metadata, NAT64", dst: "[64:ff9b::a9fe:a9fe]:80", want: "not a public"},
		{name: "private through 6to4", dst: "[2002:a00:1::1]:80", want: "special"},
		{name: "Teredo", dst: "[2001:0:1::1]:80", want: "special"},
		{name: "unspecified", dst: "0.0.0.0:80", want: "unspecified"},
		{name: "this network", dst: "0.1.2.3:80", want: "unspecified"},
		{name: "unspecified, IPv6", dst: "[::]:80", want: "unspecified"},
		{name: "multicast", network: "udp", dst: "224.0.0.251:5353", want: "multicast"},
		{name: "multicast, IPv6", network: "udp", dst: "[ff02::fb]:5353", want: "multicast"},
		{name: "broadcast", network: "udp", dst: "255.255.255.255:9", want: "broadcast"},
		{name: "10/8", dst: "10.0.0.1:80", want: "private"},
		{name: "172.16/12, first", dst: "172.16.0.1:80", want: "private"},
		{name: "172.16/12, last", dst: "172.31.255.255:80", want: "private"},
		{name: "beside 172.16/12", dst: "172.32.0.1:80"},
		{name: "192.168/16", dst: "192.168.0.1:80", want: "private"},
		{name: "carrier-grade NAT", dst: "100.64.0.1:80", want: "carrier"},
		{name: "beside it", dst: "100.128.0.1:80"},
		{name: "class E", dst: "240.0.0.1:80", want: "special"},
		{name: "benchmark", dst: "198.19.0.1:80", want: "benchmark"},
		{name: "documentation", dst: "203.0.113.1:80", want: "documentation"},
		{name: "ULA", dst: "[fd00::1]:80", want: "not a public"},
		{name: "link-local, IPv6", dst: "[fe80::1]:80", want: "not a public"},
		{name: "link-local with zone", dst: "[fe80::1%eth0]:80", want: "not a public"},
		{name: "own networks, gateway", dst: "10.77.0.1:22", want: "own networks"},
		{name: "own networks, neighbour", dst: "10.77.0.77:22", want: "own networks"},
		{name: "own networks, control", dst: "169.254.77.1:7077", want: "own networks"},
		{name: "host's public address", dst: own4 + ":22", want: "address of the host"},
		{name: "host's public address, mapped", dst: "[::ffff:" + own4 + "]:22", want: "address of the host"},
		{name: "host's public address, IPv6", dst: "[" + own6 + "]:22", want: "address of the host"},

		{name: "allow private", allow: rules{"10.0.0.0/8"}, dst: "10.1.2.3:80"},
		{name: "allow private, mapped", allow: rules{"10.0.0.0/8"}, dst: "[::ffff:10.1.2.3]:80"},
		{name: "allow one port", allow: rules{"10.1.2.3:80"}, dst: "10.1.2.3:80"},
		{name: "allow another port", allow: rules{"10.1.2.3:80"}, dst: "10.1.2.3:81", want: "private"},
		{name: "allow beats none", mode: "none", allow: rules{"93.184.216.34:443"}, dst: "93.184.216.34:443"},
		{name: "allow does not open own networks", allow: rules{"10.77.0.0/24", "0.0.0.0/0"}, dst: "10.77.0.1:22", want: "own networks"},
		{name: "allow does not open multicast", allow: rules{"224.0.0.0/4"}, network: "udp", dst: "224.0.0.1:1", want: "multicast"},
		{name: "wide allow, private", allow: rules{"0.0.0.0/0"}, dst: "192.168.5.5:80"},
		{name: "wide allow, loopback", allow: rules{"0.0.0.0/0"}, dst: "127.0.0.1:80", want: "loopback"},
		{name: "wide allow, metadata", allow: rules{"0.0.0.0/0"}, dst: "169.254.169.254:80", want: "link-local"},
		{name: "wide allow, host", allow: rules{"0.0.0.0/0"}, dst: own4 + ":80", want: "address of the host"},
		{name: "wide allow, IPv6 loopback", allow: rules{"::/0"}, dst: "[::1]:80", want: "not a public"},
		{name: "wide allow does not mix families", allow: rules{"::/0"}, dst: "[::ffff:10.0.0.1]:80", want: "private"},
		{name: "allow metadata", allow: rules{"169.254.169.254"}, dst: "169.254.169.254:80"},
		{name: "allow loopback block", allow: rules{"127.0.0.0/8:8080"}, dst: "127.0.0.1:8080"},
		{name: "allow the host's network", allow: rules{"192.168.1.0/24"}, dst: "192.168.1.10:22", want: "private"},
		{name: "allow the host's neighbour", allow: rules{"192.168.1.0/24"}, dst: "192.168.1.11:22"},
		{name: "allow the host", allow: rules{"192.168.1.10:5432"}, dst: "192.168.1.10:5432"},

		{name: "deny public", deny: rules{"93.184.216.0/24"}, dst: "93.184.216.34:80", want: "deny list"},
		{name: "deny one port", deny: rules{"0.0.0.0/0:25"}, dst: "93.184.216.34:25", want: "deny list"},
		{name: "deny one port, another", deny: rules{"0.0.0.0/0:25"}, dst: "93.184.216.34:80"},
		{name: "deny beats allow", allow: rules{"10.1.2.3"}, deny: rules{"10.0.0.0/8"}, dst: "10.1.2.3:80", want: "deny list"},
		{name: "deny, mapped", deny: rules{"93.184.216.34"}, dst: "[::ffff:93.184.216.34]:80", want: "deny list"},
		{name: "none", mode: "none", dst: "93.184.216.34:443", want: "egress is off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			policy := mustPolicy(t, tt.mode, tt.allow, tt.deny)
			network := tt.network
			if network == "" {
				network = "tcp"
			}
			err := Levels{{Of: "server", Policy: policy}}.Check(network, netip.MustParseAddrPort(tt.dst), nil, isHost)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want a refusal with %q", err, tt.want)
			}
		})
	}
}

func TestPolicyFailsClosed(t *testing.T) {
	broken := func(netip.Addr) (bool, error) { return false, errors.New("no netlink") }
	if err := (Levels{}).Check("tcp", netip.MustParseAddrPort("9.9.9.9:443"), nil, broken); err == nil {
		t.Error("permitted although the host's addresses are unknown")
	}
	if err := (Levels{{Policy: Policy{Mode: "Public"}}}).Check("tcp", netip.MustParseAddrPort("9.9.9.9:443"), nil, notHost); err == nil {
		t.Error("permitted in a mode that does not exist")
	}
	if err := (Levels{}).Check("tcp", netip.AddrPort{}, nil, notHost); err == nil {
		t.Error("permitted without an address")
	}
}

func notHost(netip.Addr) (bool, error) { return false, nil }

func TestParseRule(t *testing.T) {
	tests := []struct{ text, want, fails string }{
		{text: "192.0.2.7", want: "192.0.2.7"},
		{text: "192.0.2.7/32", want: "192.0.2.7"},
		{text: "10.0.0.0/8:80,443", want: "10.0.0.0/8:80,443"},
		{text: "10.0.0.0/8:443,80,81-90,85-100", want: "10.0.0.0/8:80-100,443"},
		{text: "10.0.0.1:1-65535", want: "10.0.0.1:1-65535"},
		{text: "10.0.0.1:65535,65534", want: "10.0.0.1:65534-65535"},
		{text: "2001:db8::1", want: "2001:db8::1"},
		{text: "2001:db8::/32", want: "2001:db8::/32"},
		{text: "[2001:db8::/32]:443", want: "[2001:db8::/32]:443"},
		{text: "[2001:db8::1]", want: "2001:db8::1"},
		{text: "::ffff:10.0.0.1", want: "10.0.0.1"},
		{text: "", fails: "not an IP address"},
		{text: "example.com", want: "example.com"},
		{text: "Example.COM.:443,80", want: "example.com:80,443"},
		{text: "*.example.com:443", want: "*.example.com:443"},
		{text: "_dmarc.xn--bcher-kva.example", want: "_dmarc.xn--bcher-kva.example"},
		{text: "*", fails: "a dot inside"},
		{text: "*.com.*", fails: "letters, digits"},
		{text: "a.*.example.com", fails: "letters, digits"},
		{text: "localhost", fails: "a dot inside"},
		{text: "*.", fails: "a dot inside"},
		{text: "a..b", fails: "between two dots"},
		{text: strings.Repeat("a", 64) + ".b", fails: "between two dots"},
		{text: strings.Repeat("a.", 130) + "b", fails: "more than 253"},
		{text: "bücher.example", fails: "xn--"},
		{text: "db.internal", fails: "those of VMs"},
		{text: "exa mple.com", fails: "letters, digits"},
		{text: "10.0.0.256", fails: "not an IP address"},
		{text: "example.com:1" + strings.Repeat(",1", 64), fails: "at most 64"},
		{text: "10.0.0.0/33", fails: "not a block"},
		{text: "10.1.2.3/8", fails: "did you mean 10.0.0.0/8"},
		{text: "::ffff:10.0.0.0/104", fails: "written as IPv6"},
		{text: "fe80::1%eth0", fails: "zone"},
		{text: "10.0.0.1:", fails: "not a port"},
		{text: "10.0.0.1:0", fails: "not a port"},
		{text: "10.0.0.1:65536", fails: "not a port"},
		{text: "10.0.0.1:80-", fails: "not a port"},
		{text: "10.0.0.1:90-80", fails: "backwards"},
		{text: "10.0.0.1:http", fails: "not a port"},
		{text: "[2001:db8::1", fails: "not closed"},
		{text: "[2001:db8::1]443", fails: "only a colon"},
		{text: "010.0.0.1", fails: "not an IP address"},
		{text: "0x7f000001", fails: "not an IP address"},
		{text: "127.1", fails: "not an IP address"},
	}
	for _, tt := range tests {
		rule, err := ParseRule(tt.text)
		switch {
		case tt.fails == "" && (err != nil || rule.String() != tt.want):
			t.Errorf("%q: %v, %v; want %s", tt.text, rule, err, tt.want)
		case tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)):
			t.Errorf("%q: %v, want a failure with %q", tt.text, err, tt.fails)
		}
	}
}

func mustPolicy(t *testing.T, mode string, allow, deny []string) Policy {
	t.Helper()
	policy, err := New(mode, allow, deny)
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

func TestNew(t *testing.T) {
	if _, err := New("open", nil, nil); err == nil {
		t.Errorf("unknown mode: %v", err)
	}
	if _, err := New("", nil, []string{"x"}); err == nil || !strings.Contains(err.Error(), "deny list") {
		t.Errorf("bad rule: %v", err)
	}
	policy := mustPolicy(t, "none", []string{"10.0.0.0/8:80"}, []string{"[2001:db8::/32]:1-2"})
	text, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	var again Policy
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(policy, again, cmp.AllowUnexported(Rule{}, portRange{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if err := json.Unmarshal([]byte(`{"allow":["10.0.0.0/99"]}`), &again); err == nil {
		t.Error("a bad rule was read from JSON")
	}
}

func FuzzParseRule(f *testing.F) {
	for _, seed := range []string{"10.0.0.0/8:80,443", "[2001:db8::/32]:1-2,7", "192.0.2.1", "::ffff:1.2.3.4", "[::]:1", "1.2.3.4:9-1", "*.Example.org.:443", "a.b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rule, err := ParseRule(text)
		if err != nil {
			return
		}
		again, err := ParseRule(rule.String())
		if err != nil || again.String() != rule.String() {
			t.Fatalf("%q reads as %q, and that as %q, %v", text, rule, again, err)
		}
		// Whatever is allowed, the VM's own networks stay closed.
		levels := Stack(Policy{Allow: []Rule{rule}}, nil, nil)
		if levels.Check("tcp", netip.MustParseAddrPort("10.77.0.1:80"), []string{"a.b"}, notHost) == nil {
			t.Fatalf("%q opens the gateway", text)
		}
		f := flow{addr: rule.prefix.Addr(), names: []string{strings.Replace(rule.name, "*", "x", 1)}}
		f.port = 80
		if len(rule.ports) > 0 {
			f.port = rule.ports[0].first
		}
		if !rule.covers(f) {
			t.Fatalf("%q does not cover its own first address", text)
		}
	})
}

// The policy and the address tests of package netip agree about what is special.
func FuzzPolicyDefault(f *testing.F) {
	for _, seed := range []string{"127.0.0.1", "::ffff:7f00:1", "fd00::", "10.0.0.1", "64:ff9b::1"} {
		addr := netip.MustParseAddr(seed).As16()
		f.Add(addr[:])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok {
			return
		}
		if (Levels{}).Check("tcp", netip.AddrPortFrom(addr, 80), nil, notHost) != nil {
			return
		}
		plain := addr.Unmap()
		if !plain.IsGlobalUnicast() || plain.IsPrivate() || plain.IsLoopback() || plain.IsLinkLocalUnicast() {
			t.Fatalf("%s is permitted", addr)
		}
	})
}
