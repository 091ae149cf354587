package netstack

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"vers/internal/fault"
)

// club is an organisation's internal network: names and networks by id, and who takes part.
type club struct {
	mu       sync.Mutex
	networks map[string]*Network
	members  map[string]bool
}

// seat is one VM's view of a club.
type seat struct {
	*club
	id string
}

func (s seat) Member() bool { return s.in(s.id) }

func (c *club) in(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[id]
}

func (c *club) set(id string, member bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[id] = member
}

func (s seat) Resolve(name string) []string {
	if s.in(name) {
		return []string{name}
	}
	return nil
}

func (s seat) All() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, member := range s.members {
		if member {
			ids = append(ids, id)
		}
	}
	return ids
}

func (s seat) Reaches(id string) bool { return s.in(s.id) && s.in(id) }

func (s seat) Dial(ctx context.Context, id string, port uint16) (net.Conn, error) {
	s.mu.Lock()
	n := s.networks[id]
	s.mu.Unlock()
	if n == nil || !s.Reaches(id) {
		return nil, fault.NotFoundf("no peer %s", id)
	}
	return n.DialGuest(ctx, port)
}

// join makes a VM of a club.
func (c *club) join(t *testing.T, id string, member bool) (*Network, *testGuest) {
	t.Helper()
	c.set(id, member)
	n, guest := pair(t, Config{Peers: seat{c, id}, Egress: levels(t, "", "none")})
	c.mu.Lock()
	c.networks[id] = n
	c.mu.Unlock()
	return n, guest
}

func (g *testGuest) resolve(name string) (string, error) {
	answer, err := g.ask("udp", name, dns.TypeA)
	if err != nil {
		return "", err
	}
	if len(answer.Answer) != 1 {
		return "", fmt.Errorf("%s: %s, %d records", name, dns.RcodeToString[answer.Rcode], len(answer.Answer))
	}
	return answer.Answer[0].(*dns.A).A.String(), nil
}

func TestPeers(t *testing.T) {
	c := &club{networks: map[string]*Network{}, members: map[string]bool{}}
	web, webGuest := c.join(t, "web", true)
	_, dbGuest := c.join(t, "db", true)
	_, shyGuest := c.join(t, "shy", false)
	for _, g := range []*testGuest{webGuest, dbGuest, shyGuest} {
		g.listen(mainNIC, 5432, echo)
	}
	db, err := webGuest.resolve("DB.internal.")
	if err != nil || !strings.HasPrefix(db, "10.78.") {
		t.Fatalf("db.internal is %q, %v", db, err)
	}
	conn, err := webGuest.dial(soon(t), db+":5432")
	if err != nil {
		t.Fatal(err)
	}
	checkEcho(t, conn, 1<<20)
	if conn, err = webGuest.dial(soon(t), db+":5432"); err == nil {
		err = ping(conn)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := webGuest.reaches(db + ":1"); err == nil {
		t.Error("a port on which nothing listens was reached")
	}
	own, err := webGuest.resolve("web.internal.")
	if err != nil || webGuest.reaches(own+":5432") != nil {
		t.Errorf("a VM does not reach itself by its name: %s, %v", own, err)
	}

	for _, name := range []string{"shy.internal.", "nobody.internal.", "db.vers.internal.", "internal."} {
		if addr, err := webGuest.resolve(name); err == nil {
			t.Errorf("%s is %s", name, addr)
		}
	}
	if addr, err := shyGuest.resolve("db.internal."); err == nil {
		t.Errorf("for one who does not take part db.internal is %s", addr)
	}
	for what, err := range map[string]error{
		"one who does not take part reaches the address": shyGuest.reaches(db + ":5432"),
		"an address that is nobody's":                    webGuest.reaches(wish("nobody").String() + ":5432"),
		"the address of one who does not take part":      webGuest.reaches(wish("shy").String() + ":5432"),
	} {
		if err == nil {
			t.Error(what)
		}
	}
	refused := web.Stats().FlowsRefused
	flow := webGuest.dialUDP(db + ":5432")
	defer flow.Close()
	_, _ = flow.Write([]byte("x"))
	eventually(t, "UDP is refused", func() bool { return web.Stats().FlowsRefused > refused })

	// An address that a guest still knows after versd was restarted leads to the same VM.
	web.peers.mu.Lock()
	web.peers.ids, web.peers.addr = nil, nil
	web.peers.mu.Unlock()
	if err := webGuest.reaches(db + ":5432"); err != nil {
		t.Errorf("an address from before a restart: %v", err)
	}

	c.set("db", false)
	web.Recheck()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("a connection to one who left: %v, want a reset", err)
	}
	if webGuest.reaches(db+":5432") == nil {
		t.Error("one who left is reached")
	}
	if len(web.Refusals()) == 0 {
		t.Error("no refusal is remembered")
	}
}

func TestPeerAddresses(t *testing.T) {
	c := &club{networks: map[string]*Network{}, members: map[string]bool{"self": true}}
	table := &peerTable{Peers: seat{c, "self"}}
	seen := map[string]string{}
	for i := range peersKept {
		id := fmt.Sprintf("vm-%d", i)
		c.set(id, true)
		addr, ok := table.of(id)
		if !ok {
			t.Fatalf("no address for the %d-th VM", i)
		}
		if other := seen[addr.String()]; other != "" {
			t.Fatalf("%s has the address of %s", id, other)
		}
		if octets := addr.As4(); octets[0] != 10 || octets[1] != 78 || addr.String() == "10.78.0.0" || addr.String() == "10.78.255.255" {
			t.Fatalf("%s has %s", id, addr)
		}
		seen[addr.String()] = id
		if found, err := table.at("tcp", addr); err != nil || found != id {
			t.Fatalf("%s is %s, %v", addr, found, err)
		}
	}
	if _, ok := table.of("one more"); ok {
		t.Error("the table has no bound")
	}
	c.set("vm-0", false)
	if _, ok := table.of("one more"); !ok {
		t.Error("the place of one who left is not taken")
	}
}
