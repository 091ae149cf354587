package test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"
)

// probe connects to a host and port and prints what greets it, or why it does not.
const probe = `import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3]) if len(sys.argv) > 3 else 5)
    print(s.makefile().readline().strip() or "nothing")
except Exception as e:
    print("FAILED", type(e).__name__, e)
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
	p.write("probe.py", probe)
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

// ask gives what greets a connection from inside.
func (p prober) ask(host string, port int) string {
	p.t.Helper()
	return p.run(fmt.Sprintf("vers execute %s python3 /root/probe.py %s %d", p.vm, host, port))
}

// fails expects that a connection from inside comes to nothing.
func (p prober) fails(host string, port int) {
	p.t.Helper()
	if got := p.ask(host, port); !strings.HasPrefix(got, "FAILED") {
		p.t.Errorf("from inside, %s:%d greets with %q", host, port, got)
	}
}

// reaches expects that one works, and who greets it.
func (p prober) reaches(host string, port int, want string) {
	p.t.Helper()
	if got := p.ask(host, port); got != want {
		p.t.Errorf("from inside, %s:%d greets with %q, want %q", host, port, got, want)
	}
}

// TestEgress tries from inside of real guests what must not work. Each attempt comes with one that works, so that no attempt
// fails for another reason.
func TestEgress(t *testing.T) {
	lab := newNetLab(t)
	s := lab.newServer("[egress]", fmt.Sprintf("allow = [\"%s:%d\"]", labOpened, labPort))
	u := newUser(t, s)
	u.limit = time.Minute
	main := u.newProber("main", "")
	api := number(t, strings.TrimPrefix(s.url(t), "http://127.0.0.1:"))
	control := func(t *testing.T) {
		t.Helper()
		main.in(t).reaches(labPublic, labPort, "outside")
	}
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
			for _, host := range tt.hosts {
				main.in(t).fails(host, tt.port)
			}
			control(t)
		})
	}
	t.Run("what the operator opened", func(t *testing.T) { main.in(t).reaches(labOpened, labPort, "outside") })
	t.Run("a spoofed source", func(t *testing.T) {
		p := main.in(t)
		before := p.spoofed()
		p.run(`vers execute main sh -c 'ip addr add 10.77.0.3/24 dev eth0 && ip route replace default via 10.77.0.1 dev eth0 src 10.77.0.3'`)
		p.fails(labPublic, labPort)
		p.run(`vers execute main sh -c 'ip route replace default via 10.77.0.1 dev eth0 src 10.77.0.2; ip addr del 10.77.0.3/24 dev eth0'`)
		if p.spoofed() == before {
			t.Error("no frame was counted as spoofed")
		}
		control(t)
	})
	t.Run("a spoofed MAC", func(t *testing.T) {
		p := main.in(t)
		before := p.spoofed()
		mac := p.run(`vers execute main cat /sys/class/net/eth0/address`)
		p.run(`vers execute main ip link set dev eth0 address 02:76:65:72:73:77`)
		p.fails(labPublic, labPort)
		p.run(`vers execute main ip link set dev eth0 address ` + mac)
		if p.spoofed() == before {
			t.Error("no frame was counted as spoofed")
		}
		control(t)
	})
	t.Run("DNS rebinding", func(t *testing.T) { testRebinding(t, lab, main.in(t)) })
	t.Run("other VMs", func(t *testing.T) { testPeers(t, s, main.in(t)) })
	t.Run("policies", func(t *testing.T) { testPolicies(t, lab, s, u) })
	t.Run("what was refused is shown and logged", func(t *testing.T) {
		p := main.in(t)
		p.fails(labMetadata, labPort)
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
	main.reaches("good.example", labPort, "outside")
	main.reaches("opened.example", labPort, "outside")
	for name := range bad {
		main.fails(name, labPort)
		if got := main.run("vers execute main sh -c 'getent ahostsv4 " + name + " || echo unknown'"); got != "unknown" {
			t.Errorf("the guest is told %s for %s", got, name)
		}
	}
	names["good.example"] = labMetadata
	lab.setNames(names)
	main.fails("good.example", labPort)
	names["good.example"] = labPublic
	lab.setNames(names)
	main.reaches("good.example", labPort, "outside")
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
		p.write("greet.py", "import socket\ns = socket.create_server(('', 9000))\nwhile True:\n    c, _ = s.accept()\n    c.sendall(b'peer\\n')\n    c.close()\n")
		p.run(`vers execute ` + p.vm + ` 'nohup setsid python3 /root/greet.py >/dev/null 2>&1 </dev/null & until python3 /root/probe.py 127.0.0.1 9000 | grep -q peer; do sleep 0.1; done'`)
	}
	web.reaches("db.internal", 9000, "peer")
	address := strings.Fields(web.run("vers execute web getent ahostsv4 db.internal"))[0]
	if !strings.HasPrefix(address, "10.78.") {
		t.Fatalf("db.internal is %s", address)
	}
	id := u.run("vers alias db")
	web.reaches(id+".internal", 9000, "peer")

	t.Run("another VM that did not opt in", func(t *testing.T) {
		for _, host := range []string{"main.internal", u.run("vers alias main") + ".internal", "10.77.0.3"} {
			web.in(t).fails(host, 9000)
		}
		for _, host := range []string{"db.internal", id + ".internal", address} {
			main.in(t).fails(host, 9000)
		}
		web.in(t).reaches("db.internal", 9000, "peer")
	})
	t.Run("another organisation's VM", func(t *testing.T) {
		for _, host := range []string{"db.internal", id + ".internal", address, "web.internal"} {
			spy.in(t).fails(host, 9000)
		}
		for _, host := range []string{"spy.internal", rival.run("vers alias spy") + ".internal"} {
			web.in(t).fails(host, 9000)
		}
		spy.in(t).reaches("spy.internal", 9000, "peer")
		web.in(t).reaches("db.internal", 9000, "peer")
	})
	t.Run("leaving", func(t *testing.T) {
		u.run("vers egress db --internal=false")
		web.in(t).fails("db.internal", 9000)
		web.in(t).fails(address, 9000)
		u.run("vers egress db --internal")
		web.in(t).reaches("db.internal", 9000, "peer")
	})
	t.Run("no egress in spite of peers", func(t *testing.T) {
		db.in(t).fails(labPublic, labPort)
		db.in(t).reaches("db.internal", 9000, "peer")
	})
}

// testPolicies: a VM's own policy, its children, the organisation's, a change and a restart of versd.
func testPolicies(t *testing.T, lab *netLab, s *server, u *user) {
	lab.setNames(map[string]string{"good.example": labPublic, "other.example": labPublic})
	v := *u
	v.t = t
	u = &v
	named := u.newProber("named", fmt.Sprintf("--egress allow=good.example:%d", labPort))
	named.fails(labPublic, labPort) // its name was not asked for yet
	named.reaches("good.example", labPort, "outside")
	named.fails("other.example", labPort)
	if got := named.run(`vers execute named sh -c 'getent ahostsv4 other.example || echo unknown'`); got != "unknown" {
		t.Errorf("a name that is not allowed is %s", got)
	}
	named.fails(labOpened, labPort)

	u.run("vers branch named -n child --wait")
	child := prober{u, "child"}
	child.fails("other.example", labPort)
	child.reaches("good.example", labPort, "outside")

	// versd is away and comes back: the policy holds, the names have to be asked for again.
	s.kill()
	must(t, s.start())
	named.fails(labPublic, labPort)
	named.fails("other.example", labPort)
	named.reaches("good.example", labPort, "outside")

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
	named.fails("good.example", labPort)
	child.reaches("good.example", labPort, "outside")

	// The organisation's holds for all its VMs, whatever they say; no VM widens it.
	u.run("vers egress named --set internet")
	named.reaches(labPublic, labPort, "outside")
	sh(t, bin+"/versd org egress default --set deny="+labPublic+" --config "+s.config())
	eventually(t, "the organisation's policy holds", func() error {
		if got := named.ask(labPublic, labPort); !strings.HasPrefix(got, "FAILED") {
			return fmt.Errorf("greeted with %q", got)
		}
		return nil
	})
	child.fails("good.example", labPort)
	u.run("vers egress named --set allow=" + labPublic + "," + labMetadata)
	named.fails(labPublic, labPort)
	named.fails(labMetadata, labPort)
	sh(t, bin+"/versd org egress default --clear --config "+s.config())
	eventually(t, "the organisation's policy is gone", func() error {
		if got := named.ask(labPublic, labPort); got != "outside" {
			return fmt.Errorf("greeted with %q", got)
		}
		return nil
	})
	named.fails(labMetadata, labPort)
}
