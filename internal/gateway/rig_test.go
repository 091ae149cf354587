package gateway_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/catalog"
	"vers/internal/gateway"
	"vers/internal/machine"
	"vers/internal/machine/machinetest"
	"vers/internal/registry"
)

// rig is a gateway in front of VMs whose agents are real and run on this machine.
type rig struct {
	*machinetest.Rig
	t        *testing.T
	gateway  *gateway.Gateway
	registry *registry.Registry
	tls, ssh string
	raw      string // listener of the guest's port rawPort
	key      catalog.Key
	secret   string // API key of acme
	stranger string // of other
	log      *syncLog
	options  gateway.Options
}

const rawPort = 5432

func newRig(t *testing.T, change ...func(*gateway.Options)) *rig {
	t.Helper()
	r := &rig{t: t, Rig: machinetest.New(t, machinetest.Options{}), log: &syncLog{}}
	r.registry = registry.New(r.Catalog, registry.Options{})
	var err error
	r.key, r.secret, err = r.registry.CreateKey(t.Context(), r.Acme.OrgID, "acme")
	r.must(err)
	_, r.stranger, err = r.registry.CreateKey(t.Context(), r.Other.OrgID, "other")
	r.must(err)
	o := gateway.Options{Dir: t.TempDir(), Domain: "vm.example.org", APIHost: "api.example.org", Connections: 64,
		API:      http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the API") }),
		Machines: r.Manager, Registry: r.registry, Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, c := range change {
		c(&o)
	}
	r.options = o
	r.start()
	return r
}

// start opens the gateway, a second time too.
func (r *rig) start() {
	r.t.Helper()
	var err error
	r.gateway, err = gateway.New(r.options)
	r.must(err)
	r.t.Cleanup(r.gateway.Close)
	listen := func(serve func(net.Listener) func() error) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		r.must(err)
		go serve(l)()
		return l.Addr().String()
	}
	r.tls = listen(func(l net.Listener) func() error { return r.gateway.TLS(l, 0) })
	r.raw = listen(func(l net.Listener) func() error { return r.gateway.TLS(l, rawPort) })
	r.ssh = listen(r.gateway.SSH)
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// roots trust the gateway's authority.
func (r *rig) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(r.gateway.Authority())) {
		r.t.Fatal("the gateway's authority is no certificate")
	}
	return pool
}

// dialTLS connects to a host name and verifies it.
func (r *rig) dialTLS(address, host string) (*tls.Conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: machinetest.Patience}, Config: &tls.Config{ServerName: host, RootCAs: r.roots()}}
	conn, err := d.DialContext(r.t.Context(), "tcp", address)
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn.(*tls.Conn), nil
}

// browser is an HTTP client to which all names lead to the gateway.
func (r *rig) browser() *http.Client {
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: r.roots()},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", r.tls)
		},
	}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: machinetest.Patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// get gives status and body of a page.
func (r *rig) get(client *http.Client, url string, header ...string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, url, nil)
	r.must(err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	r.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	r.must(err)
	return resp, string(body)
}

// signer is a VM's own key.
func (r *rig) signer(vm machine.VM) ssh.Signer {
	s, err := ssh.ParsePrivateKey([]byte(vm.SSHKey))
	r.must(err)
	return s
}

// newSigner makes a user's key; its public line is for the registry.
func (r *rig) newSigner() (s ssh.Signer, line string) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	r.must(err)
	s, err = ssh.NewSignerFromKey(key)
	r.must(err)
	return s, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey()))) + " somebody"
}

// checkHost trusts the gateway's SSH authority and nothing else.
func (r *rig) checkHost() ssh.HostKeyCallback {
	authority, _, _, _, err := ssh.ParseAuthorizedKey([]byte(r.gateway.SSHAuthority()))
	r.must(err)
	checker := ssh.CertChecker{IsHostAuthority: func(key ssh.PublicKey, _ string) bool {
		return bytes.Equal(key.Marshal(), authority.Marshal())
	}}
	return checker.CheckHostKey
}

// login logs in over a connection to the host called name.
func (r *rig) login(conn net.Conn, name, user string, key ssh.Signer) (*ssh.Client, error) {
	r.t.Helper()
	c, channels, requests, err := ssh.NewClientConn(conn, name+":22", &ssh.ClientConfig{User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)},
		HostKeyCallback: r.checkHost(), Timeout: machinetest.Patience})
	if err != nil {
		return nil, err
	}
	client := ssh.NewClient(c, channels, requests)
	r.t.Cleanup(func() { client.Close() })
	return client, nil
}

// loginSSH logs in at the SSH port.
func (r *rig) loginSSH(user string, key ssh.Signer) (*ssh.Client, error) {
	conn, err := (&net.Dialer{}).DialContext(r.t.Context(), "tcp", r.ssh)
	r.must(err)
	return r.login(conn, gateway.GatewayHost, user, key)
}

// run gives the output and error output of a command.
func (r *rig) run(client *ssh.Client, command string) (stdout, stderr string, err error) {
	session, err := client.NewSession()
	if err != nil {
		return "", "", err
	}
	defer session.Close()
	var out, errOut bytes.Buffer
	session.Stdout, session.Stderr = &out, &errOut
	err = session.Run(command)
	return out.String(), errOut.String(), err
}

// alias gives a VM a name.
func (r *rig) alias(vm machine.VM, name string) {
	r.t.Helper()
	r.must(r.Manager.SetLabels(r.t.Context(), r.Acme, vm.ID, map[string]string{machine.AliasLabel: name}))
}

// soon waits until something is so.
func (r *rig) soon(what string, so func() bool) {
	r.t.Helper()
	for end := time.Now().Add(machinetest.Patience); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatal("not in time: ", what)
		}
	}
}
