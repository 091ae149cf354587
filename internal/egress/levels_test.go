package egress

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

// A lower level only narrows, whatever it says.
func TestLevelsCheck(t *testing.T) {
	parse := func(text string) *Policy {
		if text == "" {
			return nil
		}
		p, err := Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return &p
	}
	tests := []struct {
		name            string
		server, org, vm string // server "": the default
		dst             string
		names           []string
		want            string // empty: permitted; else part of the reason
	}{
		{name: "nothing said", dst: "93.184.216.34:443"},
		{name: "VM off", vm: "none", dst: "93.184.216.34:443", want: "VM: egress is off"},
		{name: "organisation off", org: "none", vm: "internet", dst: "93.184.216.34:443", want: "organisation: egress is off"},
		{name: "server off", server: "none", org: "internet", vm: "internet", dst: "93.184.216.34:443", want: "server: egress is off"},
		{name: "VM cannot open private", vm: "internet,allow=10.0.0.0/8", dst: "10.1.2.3:80", want: "server: 10.1.2.3 is a private"},
		{name: "organisation cannot open metadata", org: "allow=169.254.169.254", dst: "169.254.169.254:80", want: "server: 169.254.169.254 is link-local"},
		{name: "VM cannot open loopback", vm: "allow=127.0.0.1", dst: "127.0.0.1:80", want: "loopback"},
		{name: "VM cannot open what the organisation closes", org: "allow=93.184.216.34:443", vm: "allow=9.9.9.9:53", dst: "9.9.9.9:53", want: "organisation: the allow list"},
		{name: "both allow", org: "allow=93.184.216.0/24:443", vm: "allow=93.184.216.34", dst: "93.184.216.34:443"},
		{name: "server opens private, the others say nothing", server: "internet,allow=10.1.2.3:80", dst: "10.1.2.3:80"},
		{name: "server opens private, VM has the internet only", server: "internet,allow=10.1.2.3:80", vm: "internet", dst: "10.1.2.3:80", want: "VM: 10.1.2.3 is a private"},
		{name: "server opens private, VM too", server: "internet,allow=10.1.2.3:80", vm: "none,allow=10.1.2.3", dst: "10.1.2.3:80"},
		{name: "deny only inherits", server: "internet,allow=10.1.2.3:80", vm: "deny=9.9.9.9", dst: "10.1.2.3:80"},
		{name: "deny of the organisation beats allow of the VM", org: "deny=93.184.216.34", vm: "allow=93.184.216.34", dst: "93.184.216.34:443", want: "organisation: the deny list"},

		{name: "by name", vm: "allow=example.org:443", dst: "93.184.216.34:443", names: []string{"example.org"}},
		{name: "by name, not resolved", vm: "allow=example.org:443", dst: "93.184.216.34:443", want: "VM: the allow list"},
		{name: "by name, another port", vm: "allow=example.org:443", dst: "93.184.216.34:80", names: []string{"example.org"}, want: "VM: the allow list"},
		{name: "by name, another name", vm: "allow=example.org:443", dst: "93.184.216.34:443", names: []string{"www.example.org", "example.org.evil.test"}, want: "VM: the allow list"},
		{name: "below a name", vm: "allow=*.example.org", dst: "93.184.216.34:443", names: []string{"a.b.example.org"}},
		{name: "below a name, itself", vm: "allow=*.example.org", dst: "93.184.216.34:443", names: []string{"example.org", "badexample.org"}, want: "VM: the allow list"},
		{name: "name leads to a private address", vm: "allow=example.org", dst: "10.1.2.3:80", names: []string{"example.org"}, want: "server: 10.1.2.3 is a private"},
		{name: "name of the server leads to a private address", server: "internet,allow=example.org", dst: "10.1.2.3:80", names: []string{"example.org"}, want: "server: 10.1.2.3 is a private"},
		{name: "name of the server leads to loopback", server: "none,allow=example.org", dst: "127.0.0.1:80", names: []string{"example.org"}, want: "server"},
		{name: "name of the server", server: "none,allow=example.org:443", dst: "93.184.216.34:443", names: []string{"example.org"}},
		{name: "name of the VM leads to a private address that the server opens", server: "internet,allow=10.0.0.0/8", vm: "allow=git.example.org", dst: "10.1.2.3:80", names: []string{"git.example.org"}},
		{name: "denied name", vm: "deny=ads.example.org:443", dst: "93.184.216.34:443", names: []string{"ads.example.org"}, want: "VM: the deny list"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := Policy{}
			if p := parse(tt.server); p != nil {
				server = *p
			}
			err := Stack(server, parse(tt.org), parse(tt.vm)).Check("tcp", netip.MustParseAddrPort(tt.dst), tt.names, notHost)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want a refusal with %q", err, tt.want)
			}
		})
	}
}

func TestLevelsNames(t *testing.T) {
	for _, tt := range []struct {
		policy, name string
		permitted    bool
	}{
		{"inherit", "example.org", true},
		{"internet", "example.org", true},
		{"none", "example.org", false},
		{"allow=93.184.216.34", "example.org", false},
		{"allow=example.org:443", "example.org", true},
		{"allow=example.org:443", "www.example.org", false},
		{"allow=*.example.org", "www.example.org", true},
		{"allow=*.example.org", "example.org", false},
		{"deny=example.org", "example.org", false},
		{"deny=example.org:25", "example.org", true},
		{"internet,deny=*.example.org", "a.b.example.org", false},
	} {
		p, err := Parse(tt.policy)
		if err != nil {
			t.Fatal(err)
		}
		if err := Stack(Policy{}, nil, &p).CheckName(tt.name); (err == nil) != tt.permitted {
			t.Errorf("%s: %s: %v", tt.policy, tt.name, err)
		}
	}
}

func TestLevelsAnswer(t *testing.T) {
	isHost := func(a netip.Addr) (bool, error) { return a == netip.MustParseAddr("93.184.216.99"), nil }
	server := mustPolicy(t, "internet", []string{"10.1.0.0/16:80", "example.org"}, nil)
	everything := mustPolicy(t, "internet", []string{"0.0.0.0/0"}, nil)
	for addr, want := range map[string]bool{
		"93.184.216.34": true, "10.1.2.3": true, "10.2.2.3": false, "127.0.0.1": false, "169.254.169.254": false, "0.0.0.0": false,
		"93.184.216.99": false, "10.77.0.1": false, "::1": false, "fd00::1": false, "::ffff:127.0.0.1": false, "2606:2800:220:1::1": true,
	} {
		if err := Stack(server, nil, &everything).CheckAnswer(netip.MustParseAddr(addr), isHost); (err == nil) != want {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestLevelsLimits(t *testing.T) {
	bytes, connections := Stack(Policy{BytesPerSecond: 5000}, &Policy{ConnectionsPerSecond: 7}, &Policy{BytesPerSecond: 2000, ConnectionsPerSecond: 9}).Limits()
	if bytes != 2000 || connections != 7 {
		t.Errorf("%d bytes and %d connections per second", bytes, connections)
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		texts       []string
		want, fails string
	}{
		{texts: []string{"none"}, want: "none"},
		{texts: []string{"inherit"}, want: "inherit"},
		{texts: []string{"deny=10.0.0.0/8,Example.org"}, want: "inherit,deny=10.0.0.0/8,example.org"},
		{texts: []string{"allow=example.org:80,443,10.0.0.5:5432,8000-8999,[2001:db8::1]:1,2"}, want: "none,allow=example.org:80,443,10.0.0.5:5432,8000-8999,[2001:db8::1]:1-2"},
		{texts: []string{"allow=example.org", "deny=example.org:25", "bandwidth=10MiB/s", "connections=50"}, want: "none,allow=example.org,deny=example.org:25,bandwidth=10MiB,connections=50"},
		{texts: []string{"internet, bandwidth=1500"}, want: "internet,bandwidth=1500"},
		{texts: []string{"none", "internet"}, fails: "more than one"},
		{texts: []string{"inherit,allow=10.0.0.1"}, fails: "needs a mode"},
		{texts: []string{""}, fails: "is no policy"},
		{texts: []string{"allow"}, fails: "is no policy"},
		{texts: []string{"allow=a.example", "b.example"}, fails: "is no policy"},
		{texts: []string{"allow="}, fails: "not an IP address"},
		{texts: []string{"permit=all"}, fails: "is unknown"},
		{texts: []string{"bandwidth=fast"}, fails: "bytes per second"},
		{texts: []string{"bandwidth=1"}, fails: "bytes per second"},
		{texts: []string{"bandwidth=99999999999999GiB"}, fails: "bytes per second"},
		{texts: []string{"bandwidth=1MiB,bandwidth=2MiB"}, fails: "twice"},
		{texts: []string{"connections=0"}, fails: "no number"},
		{texts: []string{"connections=-1"}, fails: "no number"},
		{texts: []string{"allow=" + strings.Repeat("a.b,", 256) + "a.b"}, fails: "at most 256"},
		{texts: []string{strings.Repeat(",", maxExpression+1)}, fails: "more than"},
	} {
		p, err := Parse(tt.texts...)
		switch {
		case tt.fails == "" && (err != nil || p.String() != tt.want):
			t.Errorf("%q: %v, %v; want %s", tt.texts, p, err, tt.want)
		case tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)):
			t.Errorf("%q: %v, %v; want a failure with %q", tt.texts, p, err, tt.fails)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"none", "allow=example.org:80,443,10.0.0.5", "internet,deny=*.a.b:1-2,bandwidth=1MiB,connections=3", "deny=[::1]:5,6"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(p.String())
		if err != nil || again.String() != p.String() {
			t.Fatalf("%q reads as %q, and that as %q, %v", text, p, again, err)
		}
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back Policy
		if err := json.Unmarshal(data, &back); err != nil || back.String() != p.String() {
			t.Fatalf("%q is %s in JSON, and that %q, %v", p, data, back, err)
		}
		// Whatever a VM says, the host stays closed.
		for _, addr := range []string{"127.0.0.1:80", "169.254.169.254:80", "10.77.0.1:80", "10.0.0.1:22"} {
			if Stack(Policy{}, &p, &p).Check("tcp", netip.MustParseAddrPort(addr), []string{"example.org"}, notHost) == nil {
				t.Fatalf("%q opens %s", text, addr)
			}
		}
	})
}
