package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"vers/internal/gateway"
	"vers/internal/machine"
	"vers/internal/registry"
)

// serveHTTP puts a web server on a port of all guests.
func (r *rig) serveHTTP(port uint16, h http.Handler) {
	r.Driver.Serve(port, func(_ string, conn net.Conn) {
		done := make(chan struct{})
		conns := make(chan net.Conn, 1)
		conns <- &notingConn{Conn: conn, done: done}
		_ = http.Serve(&oneConn{conns: conns, done: done}, h)
	})
}

type notingConn struct {
	net.Conn
	done   chan struct{}
	closed bool
}

func (c *notingConn) Close() error {
	if !c.closed {
		c.closed = true
		close(c.done)
	}
	return c.Conn.Close()
}

// oneConn is a listener that ends with its only connection.
type oneConn struct {
	conns chan net.Conn
	done  chan struct{}
}

func (o *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-o.conns:
		return c, nil
	case <-o.done:
		return nil, io.EOF
	}
}
func (o *oneConn) Close() error   { return nil }
func (o *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// page answers with what the guest saw.
func page(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s host=%s proto=%s for=%s auth=%s cookie=%s", r.Method, r.URL, r.Host, r.Header.Get("X-Forwarded-Proto"),
		r.Header.Get("X-Forwarded-For"), r.Header.Get("Authorization"), r.Header.Get("Cookie"))
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	vm := r.Run(t)
	r.serveHTTP(80, http.HandlerFunc(page))
	r.serveHTTP(3000, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "port 3000") }))
	b := r.browser()
	host := vm.ID + ".vm.example.org"
	if resp, body := r.get(b, "https://"+host+"/a?b=c", "X-Forwarded-For", "1.2.3.4", "Authorization", "Bearer of-the-application"); resp.StatusCode != 200 ||
		body != "GET /a?b=c host="+host+" proto=https for=127.0.0.1 auth=Bearer of-the-application cookie=" {
		t.Errorf("%s %q", resp.Status, body)
	}
	if _, body := r.get(b, "https://3000-"+host+"/"); body != "port 3000" {
		t.Errorf("port 3000 says %q", body)
	}
	if _, body := r.get(b, "https://api.example.org/"); body != "the API" {
		t.Errorf("the API says %q", body)
	}
	if resp, body := r.get(b, "https://4000-"+host+"/"); resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, "nothing answers on port 4000") {
		t.Errorf("a port without a server: %s %q", resp.Status, body)
	}
	token := vm.ID + ".signed-by-the-application-and-not-by-us"
	if _, body := r.get(b, "https://"+host+"/", "Authorization", "Bearer "+token); !strings.Contains(body, "auth=Bearer "+token) {
		t.Errorf("the guest does not get its application's token: %q", body)
	}
	// What opens the API never comes to a guest.
	if _, body := r.get(b, "https://"+host+"/", "Authorization", "Bearer "+r.secret); !strings.Contains(body, "auth= ") {
		t.Errorf("the guest sees %q", body)
	}
	for _, unknown := range []string{"00000000-0000-4000-8000-000000000000.vm.example.org", "nowhere.example.org", "99999-" + host} {
		if _, err := r.dialTLS(r.tls, unknown); err == nil {
			t.Errorf("%s is connected", unknown)
		}
	}
	r.must(r.Manager.Delete(t.Context(), r.Acme, vm.ID, false))
	if resp, body := r.get(b, "https://3000-"+host+"/"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a connection to a VM that is gone: %s %q", resp.Status, body)
	}
}

// A WebSocket is an HTTP connection that changes its protocol; the bytes after that are the application's.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	vm := r.Run(t)
	r.serveHTTP(80, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Upgrade") != "echo" {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(conn, buf)
	}))
	host := vm.ID + ".vm.example.org"
	conn, err := r.dialTLS(r.tls, host)
	r.must(err)
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", host)
	from := bufio.NewReader(conn)
	resp, err := http.ReadResponse(from, nil)
	r.must(err)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	for range 3 {
		_, err = io.WriteString(conn, "hello\n")
		r.must(err)
		if line, err := from.ReadString('\n'); line != "hello\n" || err != nil {
			t.Errorf("%q, %v", line, err)
		}
	}
}

// Bytes that are neither SSH nor HTTP pass as they are, both on the main port and on one of the guest's number.
func TestRaw(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	vm := r.Run(t)
	r.Driver.Serve(80, func(_ string, conn net.Conn) { _, _ = io.Copy(conn, conn) })
	r.Driver.Serve(rawPort, func(_ string, conn net.Conn) {
		_, _ = io.WriteString(conn, "I speak first. ")
		_, _ = io.Copy(conn, conn)
	})
	host := vm.ID + ".vm.example.org"
	for address, want := range map[string]string{r.tls: "\x00\x01 bytes", r.raw: "I speak first. \x00\x01 bytes"} {
		conn, err := r.dialTLS(address, host)
		r.must(err)
		_, err = io.WriteString(conn, "\x00\x01 bytes")
		r.must(err)
		r.must(conn.CloseWrite())
		if got, err := io.ReadAll(conn); string(got) != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	_, err := r.registry.CreateDomain(t.Context(), r.Acme.OrgID, "db.example.org", registry.DomainTarget{VMID: vm.ID, Port: rawPort})
	r.must(err)
	conn, err := r.dialTLS(r.raw, "db.example.org")
	r.must(err)
	_, _ = io.WriteString(conn, "\x00\x01 bytes")
	if got, _ := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("a private name lets bytes through that show no key: %q", got)
	}
}

func TestDomains(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	vm := r.Run(t)
	r.serveHTTP(3000, http.HandlerFunc(page))
	r.serveHTTP(80, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "port 80") }))
	add := func(name string, target registry.DomainTarget) {
		t.Helper()
		target.VMID = vm.ID
		_, err := r.registry.CreateDomain(t.Context(), r.Acme.OrgID, name, target)
		r.must(err)
	}
	add("app.example.net", registry.DomainTarget{Port: 3000})
	add("open.example.net", registry.DomainTarget{Port: 3000, Public: true})
	add("second.example.net", registry.DomainTarget{Port: 3000})
	b := r.browser()
	const private = "https://app.example.net/x"
	if resp, body := r.get(b, "https://open.example.net/x"); resp.StatusCode != 200 || !strings.HasPrefix(body, "GET /x host=open.example.net") {
		t.Errorf("open name: %s %q", resp.Status, body)
	}
	if resp, _ := r.get(b, private); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("private name without key: %s", resp.Status)
	}
	if resp, _ := r.get(b, private, "Authorization", "Bearer "+r.stranger); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("private name with another organisation's key: %s", resp.Status)
	}
	if resp, body := r.get(b, private, "Authorization", "Bearer "+r.secret); resp.StatusCode != 200 || !strings.HasSuffix(body, "auth= cookie=") {
		t.Errorf("private name with key: %s %q", resp.Status, body)
	}

	u, err := r.gateway.URL(t.Context(), vm, gateway.URLRequest{Domain: "app.example.net"})
	r.must(err)
	link, err := url.Parse(u.URL)
	r.must(err)
	if !u.Private || u.Ends == nil || time.Until(*u.Ends) > gateway.LinkLife || link.Hostname() != "app.example.net" {
		t.Fatalf("%+v", u)
	}
	resp, _ := r.get(b, private+"?a=b&"+link.RawQuery)
	cookies := resp.Cookies()
	if resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "/x?a=b" || len(cookies) != 1 || !cookies[0].Secure || !cookies[0].HttpOnly {
		t.Fatalf("the link leads to %s %v", resp.Status, resp.Header)
	}
	cookie := cookies[0].Name + "=" + cookies[0].Value
	if resp, body := r.get(b, private, "Cookie", "mine=1; "+cookie); resp.StatusCode != 200 || !strings.HasSuffix(body, " cookie=mine=1") {
		t.Errorf("with the link's cookie: %s %q", resp.Status, body)
	}
	if resp, _ := r.get(b, "https://second.example.net/", "Cookie", cookie); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the cookie opens another name: %s", resp.Status)
	}
	if resp, _ := r.get(b, private+"?"+link.RawQuery[:len(link.RawQuery)-4]+"AAAA"); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a forged link: %s", resp.Status)
	}
	if resp, _ := r.get(b, "https://app.example.net//evil.example/?"+link.RawQuery); resp.StatusCode != http.StatusFound ||
		strings.HasPrefix(resp.Header.Get("Location"), "//") {
		t.Errorf("the link leads to another site: %s", resp.Header.Get("Location"))
	}
	// A connection that was opened for one name is not good for another.
	if resp := r.getAs(b, private, "open.example.net"); resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("a connection for a private name is asked for an open one: %s", resp.Status)
	}
	short, err := r.gateway.URL(t.Context(), vm, gateway.URLRequest{Domain: "app.example.net", Life: time.Nanosecond})
	r.must(err)
	_, query, _ := strings.Cut(short.URL, "?")
	if resp, _ := r.get(b, private+"?"+query); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a link that has ended: %s", resp.Status)
	}
}

// getAs asks a connection to a host for another one.
func (r *rig) getAs(client *http.Client, address, host string) *http.Response {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, address, nil)
	r.must(err)
	req.Host = host
	resp, err := client.Do(req)
	r.must(err)
	r.must(resp.Body.Close())
	return resp
}

// With private_vms the names of VMs are no better than domains.
func TestPrivateVMs(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *gateway.Options) { o.PrivateVMs = true })
	vm := r.Run(t)
	r.serveHTTP(8080, http.HandlerFunc(page))
	b := r.browser()
	host := "8080-" + vm.ID + ".vm.example.org"
	if resp, _ := r.get(b, "https://"+host+"/"); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a key: %s", resp.Status)
	}
	u, err := r.gateway.URL(t.Context(), vm, gateway.URLRequest{Port: 8080})
	r.must(err)
	_, query, _ := strings.Cut(u.URL, "?")
	if resp, _ := r.get(b, "https://"+host+"/?"+query); resp.StatusCode != http.StatusFound {
		t.Errorf("with a link: %s", resp.Status)
	}
	if resp, _ := r.get(b, "https://3000-"+vm.ID+".vm.example.org/?"+query); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the link opens another port: %s", resp.Status)
	}
	_, err = r.gateway.URL(t.Context(), machine.VM{ID: vm.ID}, gateway.URLRequest{Port: 70000})
	if err == nil {
		t.Error("port 70000 has a URL")
	}
}
