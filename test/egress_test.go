package test

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// probe connects to all HOST:PORT it is given at the same time, and prints a line for each: what greets it, or why nothing
// does. It is in Perl, which an emulated guest starts in a tenth of the time that Python takes.
const probe = `use IO::Socket::INET;
my @answers;
for my $target (@ARGV) {
  my $child = open(my $answer, '-|') // die $!;
  push @answers, $answer;
  next if $child;
  my $s = IO::Socket::INET->new(PeerAddr => $target, Timeout => 5);
  if (!$s) { print "FAILED $@ $!\n"; exit }
  alarm 5;
  my $line = <$s>;
  print defined $line ? $line : "nothing\n";
  exit;
}
for my $answer (@answers) {
  my $line = <$answer>;
  print defined $line ? $line : "FAILED: no greeting in time\n";
}
`

// prober is a VM from inside of which connections are tried.
type prober struct {
	*user
	vm string
}

// newProber starts a VM with the probe in it.
func (u *user) newProber(alias, flags string) prober {
	u.t.Helper()
	u.run(fmt.Sprintf("vers run --vm-alias %s --mem-size 192 --wait %s", alias, flags))
	p := prober{u, alias}
	p.write("probe.pl", probe)
	return p
}

// write puts a program into /root.
func (p prober) write(name, text string) {
	p.t.Helper()
	p.run(fmt.Sprintf("vers execute %s sh -c 'echo %s | base64 -d > /root/%s'", p.vm, base64.StdEncoding.EncodeToString([]byte(text)), name))
}

func (p prober) in(t *testing.T) prober {
	u := *p.user
	u.t = t
	return prober{&u, p.vm}
}

// greetings gives what greets connections from inside.
func (p prober) greetings(targets ...string) []string {
	p.t.Helper()
	lines := strings.Split(p.run(fmt.Sprintf("vers execute %s perl /root/probe.pl %s", p.vm, strings.Join(targets, " "))), "\n")
	if len(lines) != len(targets) {
		p.t.Fatalf("connections to %v: %q", targets, lines)
	}
	return lines
}

// fails expects that connections from inside come to nothing.
func (p prober) fails(targets ...string) {
	p.t.Helper()
	for i, got := range p.greetings(targets...) {
		p.failed(targets[i], got)
	}
}

func (p prober) failed(target, got string) {
	p.t.Helper()
	if !strings.HasPrefix(got, "FAILED") {
		p.t.Errorf("from inside, %s greets with %q", target, got)
	}
}

// reaches expects that one connection works, by who greets it, and no other that is tried with it.
func (p prober) reaches(target, want string, others ...string) {
	p.t.Helper()
	got := p.greetings(append([]string{target}, others...)...)
	if got[0] != want {
		p.t.Errorf("from inside, %s greets with %q, want %q", target, got[0], want)
	}
	for i, other := range others {
		p.failed(other, got[i+1])
	}
}

// at gives hosts a port.
func at(port int, hosts ...string) []string {
	targets := make([]string, len(hosts))
	for i, host := range hosts {
		targets[i] = fmt.Sprintf("%s:%d", host, port)
	}
	return targets
}

// labAt is a host of the lab with the port that everybody there listens on.
func labAt(host string) string { return at(labPort, host)[0] }

// TestEgress tries from inside of real guests what must not work. Each attempt comes with one that works, so that no attempt
// fails for another reason.
func TestEgress(t *testing.T) {
	t.Parallel()
	lab := newNetLab(t)
	s := lab.newServer("[egress]", fmt.Sprintf("allow = [\"%s:%d\"]", labOpened, labPort))
	u := newUser(t, s)
	u.limit = time.Minute
	main := u.newProber("main", "")
	api := number(t, strings.TrimPrefix(s.url(t), "http://127.0.0.1:"))
	const outside = "outside"
	public := labAt(labPublic)
	attempts := []struct {
		name  string
		hosts []string
		port  int
		there string // address under which the host itself gets a greeting
		greet string
	}{
		{"the host's loopback", []string{"127.0.0.1", "127.0.0.2", "10.77.0.1", "0.0.0.0"}, labPort, "127.0.0.1", "host"},
		{"the host's other addresses", []string{labHost, labHostIPv4, "10.98.0.1"}, labPort, labHost, "host"},
		{"versd's API", []string{"127.0.0.1", "10.77.0.1", labHost, labHostIPv4, "169.254.77.1"}, api, "", ""},
		{"the metadata address", []string{labMetadata}, labPort, labMetadata, "outside"},
		{"a private address", []string{labPrivate}, labPort, labPrivate, "outside"},
		{"another port of an address that is opened", []string{labOpened}, labPort + 1, "", ""},
	}
	for _, tt := range attempts {
		t.Run(tt.name, func(t *testing.T) {
			if tt.there != "" {
				lab.reachable(fmt.Sprintf("%s:%d", tt.there, labPort), tt.greet)
			}
			main.in(t).reaches(public, outside, at(tt.port, tt.hosts...)...)
		})
	}
	t.Run("what the operator opened", func(t *testing.T) { main.in(t).reaches(labAt(labOpened), outside) })
	t.Run("a spoofed source", func(t *testing.T) {
		p := main.in(t)
		before := p.spoofed()
		p.run(`vers execute main sh -c 'ip addr add 10.77.0.3/24 dev eth0 && ip route replace default via 10.77.0.1 dev eth0 src 10.77.0.3'`)
		p.fails(public)
		p.run(`vers execute main sh -c 'ip route replace default via 10.77.0.1 dev eth0 src 10.77.0.2; ip addr del 10.77.0.3/24 dev eth0'`)
		if p.spoofed() == before {
			t.Error("no frame was counted as spoofed")
		}
		p.reaches(public, outside)
	})
	t.Run("a spoofed MAC", func(t *testing.T) {
		p := main.in(t)
		before := p.spoofed()
		mac := p.run(`vers execute main cat /sys/class/net/eth0/address`)
		p.run(`vers execute main ip link set dev eth0 address 02:76:65:72:73:77`)
		p.fails(public)
		p.run(`vers execute main ip link set dev eth0 address ` + mac)
		if p.spoofed() == before {
			t.Error("no frame was counted as spoofed")
		}
		p.reaches(public, outside)
	})
	t.Run("DNS rebinding", func(t *testing.T) { testRebinding(t, lab, main.in(t)) })
	t.Run("other VMs", func(t *testing.T) { testPeers(t, s, main.in(t)) })
	t.Run("policies", func(t *testing.T) { testPolicies(t, lab, s, u) })
	t.Run("what was refused is shown and logged", func(t *testing.T) {
		p := main.in(t)
		p.fails(labAt(labMetadata))
		if out := p.run(`vers egress main`); !strings.Contains(out, labMetadata+":8080") || !strings.Contains(out, "policy of the server") {
			t.Errorf("vers egress:\n%s", out)
		}
		if out := p.run(`vers info main`); !strings.Contains(out, "Refused: ") || strings.Contains(out, "Refused: 0,") {
			t.Errorf("vers info:\n%s", out)
		}
		id := p.run(`vers alias main`)
		if log := s.log(); !strings.Contains(log, "egress refused") || !strings.Contains(log, id) {
			t.Error("versd's log does not have it")
		}
		metrics := sh(t, "curl -s --unix-socket "+s.socket()+" http://localhost/metrics")
		for _, want := range []string{`vers_egress_refused_total{organisation="default"}`, `vers_network_bytes_total{direction="out",organisation="default"}`} {
			if !strings.Contains(metrics, want) {
				t.Errorf("/metrics has no %s", want)
			}
		}
	})
}

func (p prober) spoofed() int {
	p.t.Helper()
	return number(p.t, p.run("vers egress "+p.vm+" --format json | jq .traffic.spoofed"))
}

// testRebinding: a name leads nowhere but where its address may be reached, also when it changes in between.
func testRebinding(t *testing.T, lab *netLab, main prober) {
	names := map[string]string{"good.example": labPublic, "opened.example": labOpened}
	bad := map[string]string{"loopback.example": "127.0.0.1", "host.example": labHost, "metadata.example": labMetadata, "private.example": labPrivate, "gateway.example": "10.77.0.1"}
	for name, addr := range bad {
		names[name] = addr
	}
	lab.setNames(names)
	good := labAt("good.example")
	main.reaches(labAt("opened.example"), "outside")
	hosts := slices.Sorted(maps.Keys(bad))
	main.reaches(good, "outside", at(labPort, hosts...)...)
	if got := main.run("vers execute main 'for name in " + strings.Join(hosts, " ") + "; do getent ahostsv4 $name || echo unknown; done'"); got != strings.TrimSpace(strings.Repeat("unknown\n", len(bad))) {
		t.Errorf("the guest is told\n%s\nfor %v", got, hosts)
	}
	names["good.example"] = labMetadata
	lab.setNames(names)
	main.fails(good)
	names["good.example"] = labPublic
	lab.setNames(names)
	main.reaches(good, "outside")
}

// testPeers: VMs of one organisation reach each other if both sides said so, and nobody else does.
func testPeers(t *testing.T, s *server, main prober) {
	u := main.user
	web, db := u.newProber("web", "--internal"), u.newProber("db", "--internal --egress none")
	sh(t, bin+"/versd org create rival --config "+s.config())
	rival := newUser(t, s)
	rival.key = s.newKey(t, "rival")
	spy := rival.newProber("spy", "--internal")
	for _, p := range []prober{main, db, spy} {
		p.write("greet.pl", "use IO::Socket::INET;\nmy $s = IO::Socket::INET->new(LocalPort => 9000, Listen => 5, ReuseAddr => 1) or die $@;\nwhile (my $c = $s->accept) { print $c qq(peer\\n); close $c }\n")
		p.run(`vers execute ` + p.vm + ` 'nohup setsid perl /root/greet.pl >/dev/null 2>&1 </dev/null & until perl /root/probe.pl 127.0.0.1:9000 | grep -q peer; do sleep 0.1; done'`)
	}
	address := strings.Fields(web.run("vers execute web getent ahostsv4 db.internal"))[0]
	if !strings.HasPrefix(address, "10.78.") {
		t.Fatalf("db.internal is %s", address)
	}
	id := u.run("vers alias db")
	for _, name := range []string{"db.internal", id + ".internal"} {
		web.reaches(name+":9000", "peer")
	}

	t.Run("another VM that did not opt in", func(t *testing.T) {
		main.in(t).fails(at(9000, "db.internal", id+".internal", address)...)
		web.in(t).reaches("db.internal:9000", "peer", at(9000, "main.internal", u.run("vers alias main")+".internal", "10.77.0.3")...)
	})
	t.Run("another organisation's VM", func(t *testing.T) {
		spy.in(t).reaches("spy.internal:9000", "peer", at(9000, "db.internal", id+".internal", address, "web.internal")...)
		web.in(t).reaches("db.internal:9000", "peer", at(9000, "spy.internal", rival.run("vers alias spy")+".internal")...)
	})
	t.Run("leaving", func(t *testing.T) {
		u.run("vers egress db --internal=false")
		web.in(t).fails(at(9000, "db.internal", address)...)
		u.run("vers egress db --internal")
		web.in(t).reaches("db.internal:9000", "peer")
	})
	t.Run("no egress in spite of peers", func(t *testing.T) {
		db.in(t).reaches("db.internal:9000", "peer", labAt(labPublic))
	})
}

// testPolicies: a VM's own policy, its children, the organisation's, a change and a restart of versd.
func testPolicies(t *testing.T, lab *netLab, s *server, u *user) {
	lab.setNames(map[string]string{"good.example": labPublic, "other.example": labPublic})
	v := *u
	v.t = t
	u = &v
	named := u.newProber("named", fmt.Sprintf("--egress allow=good.example:%d", labPort))
	good, other, public, opened, metadata := labAt("good.example"), labAt("other.example"), labAt(labPublic), labAt(labOpened), labAt(labMetadata)
	named.fails(public) // its name was not asked for yet
	named.reaches(good, "outside", other, opened)
	if got := named.run(`vers execute named sh -c 'getent ahostsv4 other.example || echo unknown'`); got != "unknown" {
		t.Errorf("a name that is not allowed is %s", got)
	}

	u.run("vers branch named -n child --wait")
	child := prober{u, "child"}
	child.reaches(good, "outside", other)

	// versd is away and comes back: the policy holds, the names have to be asked for again.
	s.kill()
	must(t, s.start())
	named.fails(public, other)
	named.reaches(good, "outside")

	// A change cuts what is open.
	named.write("hold.py", `import socket
s = socket.create_connection(("good.example", 8080), timeout=5)
s.settimeout(60)
open("/root/held", "w").write(s.recv(100).decode())
try:
    s.recv(100)
    open("/root/held", "w").write("ended")
except ConnectionResetError:
    open("/root/held", "w").write("reset")
`)
	u.run(`vers execute named 'nohup setsid python3 /root/hold.py >/dev/null 2>&1 </dev/null & until grep -q outside /root/held; do sleep 0.1; done'`)
	u.run("vers egress named --set none")
	eventually(t, "the open connection is cut", func() error {
		if got := u.run("vers execute named cat /root/held"); got != "reset" {
			return fmt.Errorf("the connection is %q", got)
		}
		return nil
	})
	named.fails(good)
	child.reaches(good, "outside")

	// The organisation's holds for all its VMs, whatever they say; no VM widens it.
	u.run("vers egress named --set internet")
	named.reaches(public, "outside")
	sh(t, bin+"/versd org egress default --set deny="+labPublic+" --config "+s.config())
	eventually(t, "the organisation's policy holds", func() error {
		if got := named.greetings(public)[0]; !strings.HasPrefix(got, "FAILED") {
			return fmt.Errorf("greeted with %q", got)
		}
		return nil
	})
	child.fails(good)
	u.run("vers egress named --set allow=" + labPublic + "," + labMetadata)
	named.fails(public, metadata)
	sh(t, bin+"/versd org egress default --clear --config "+s.config())
	eventually(t, "the organisation's policy is gone", func() error {
		if got := named.greetings(public)[0]; got != "outside" {
			return fmt.Errorf("greeted with %q", got)
		}
		return nil
	})
	named.fails(metadata)
}
