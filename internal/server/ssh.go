package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/crypto/ssh"

	"vers/api"
	"vers/internal/fault"
)

func (s *Server) routeSSH() {
	add(s, operation{method: http.MethodGet, path: "/vm/{id}/ssh_key", id: "vm-ssh-key",
		summary: "Key that logs in as root, and the guest's host key", tag: "Access"}, s.sshKey)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		s.mux.HandleFunc(method+" /api/v1/vm/{id}/ssh", s.serveSSH)
		s.actions[method+" /api/v1/vm/{id}/ssh"] = "vm-ssh"
	}
	s.api.OpenAPI().AddOperation(&huma.Operation{
		Method: http.MethodPost, Path: "/api/v1/vm/{id}/ssh", OperationID: "vm-ssh", Tags: []string{"Access"},
		Summary:     "[ours] Connection to the VM's SSH server",
		Description: "Needs the headers `Connection: Upgrade` and `Upgrade: " + api.UpgradeSSH + "`. After 101 both sides exchange the raw bytes of an SSH session.",
		Parameters: []*huma.Param{{Name: "id", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: "login", In: "query", Description: "none: the server speaks SSH itself and asks for no key, since the request had one",
				Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{"key", "none"}}},
			{Name: "host", In: "query", Description: "with login=none, the name that the client knows the VM by: a certificate that is not for it is not shown",
				Schema: &huma.Schema{Type: huma.TypeString}}},
		Responses: map[string]*huma.Response{"101": {Description: "Switching Protocols"}, "426": {Description: "The request asks for no upgrade"}},
	})
}

func (s *Server) sshKey(ctx context.Context, in *VMInput) (*output[api.SSHKey], error) {
	id, err := knownVMID(in.ID)
	if err != nil {
		return nil, err
	}
	vm, err := s.Machines.Get(ctx, callerOf(ctx), id)
	if err != nil {
		return nil, err
	}
	host, err := ssh.ParsePrivateKey([]byte(vm.SSHHostKey))
	if err != nil {
		return nil, fmt.Errorf("host key of VM %s: %w", id, err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(host.PublicKey())))
	return reply(api.SSHKey{PrivateKey: vm.SSHKey, Port: 22, HostKey: line}), nil
}

// serveSSH upgrades the connection and joins it with the SSH server of the VM's agent, or serves SSH itself.
func (s *Server) serveSSH(w http.ResponseWriter, r *http.Request) {
	serve, drop, err := s.openSSH(r)
	if err != nil {
		p := s.failure(r.Context(), operation{}, err)
		if p.status == http.StatusBadRequest {
			p.status = http.StatusUpgradeRequired
			p.header.Set("Upgrade", api.UpgradeSSH)
			p.header.Set("Connection", "Upgrade")
		}
		p.write(w)
		return
	}
	defer drop()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.failure(r.Context(), operation{}, fmt.Errorf("take over the connection: %w", err)).write(w)
		return
	}
	defer client.Close()
	if recorded, ok := w.(*responseWriter); ok {
		recorded.status = http.StatusSwitchingProtocols // for the log; from here on nobody else sees what is sent
	}
	s.sshSessions.Add(1)
	defer s.sshSessions.Add(-1)
	if err := client.SetDeadline(time.Time{}); err != nil {
		return
	}
	if _, err := io.WriteString(client, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+api.UpgradeSSH+"\r\n\r\n"); err != nil {
		return
	}
	serve(client, buffered.Reader)
}

// sshServer serves a client until it or the VM ends the connection. What the client has sent before the upgrade is in
// the reader.
type sshServer func(client net.Conn, from *bufio.Reader)

// openSSH finds out who serves SSH to a request. The caller calls drop in the end.
func (s *Server) openSSH(r *http.Request) (serve sshServer, drop func(), err error) {
	if !asksFor(r.Header, "Connection", "upgrade") || !asksFor(r.Header, "Upgrade", api.UpgradeSSH) || r.ProtoMajor != 1 {
		return nil, nil, fault.Invalidf("this endpoint needs HTTP/1.1 with 'Connection: Upgrade' and 'Upgrade: %s'; 'vers connect' sends them", api.UpgradeSSH)
	}
	id, err := knownVMID(r.PathValue("id"))
	if err != nil {
		return nil, nil, err
	}
	switch login := r.URL.Query().Get("login"); login {
	case "none":
		serve, err = s.openTrusted(r, id)
		return serve, func() {}, err
	case "", "key":
	default:
		return nil, nil, fault.Invalidf("login is %q; key or none is possible", login)
	}
	access, err := s.guests(r.Context(), callerOf(r.Context()), id)
	if err != nil {
		return nil, nil, err
	}
	guestConn, err := access.SSH(r.Context())
	if err != nil {
		return nil, nil, err
	}
	serve = func(client net.Conn, from *bufio.Reader) { splice(client, from, guestConn) }
	return serve, func() { _ = guestConn.Close() }, nil
}

// openTrusted lets the gateway speak SSH with a client that has shown an API key.
func (s *Server) openTrusted(r *http.Request, id string) (sshServer, error) {
	vm, err := s.Machines.Get(r.Context(), callerOf(r.Context()), id)
	if err != nil {
		return nil, err
	}
	if s.Gateway == nil {
		return nil, fault.Unavailablef("this server has no gateway")
	}
	return func(client net.Conn, from *bufio.Reader) {
		s.Gateway.ServeTrusted(bufferedConn{client, from}, vm, r.URL.Query().Get("host"))
	}, nil
}

// bufferedConn is a connection of which some was read already.
type bufferedConn struct {
	net.Conn
	from *bufio.Reader
}

// Read implements net.Conn.
func (c bufferedConn) Read(b []byte) (int, error) { return c.from.Read(b) }

// asksFor reports whether a header that is a list holds a word.
func asksFor(header http.Header, name, word string) bool {
	for _, value := range header.Values(name) {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), word) {
				return true
			}
		}
	}
	return false
}

// splice copies in both directions until the guest has ended its side, or either side breaks. What the client has sent
// before the upgrade is in fromClient.
func splice(client net.Conn, fromClient *bufio.Reader, guestConn net.Conn) {
	uploaded := make(chan struct{})
	go func() {
		defer close(uploaded)
		_, err := io.Copy(guestConn, fromClient)
		if half, ok := guestConn.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite() // the guest may still have something to say
			return
		}
		_ = guestConn.Close()
	}()
	_, _ = io.Copy(client, guestConn) // either side may end it, both ways are usual
	_ = client.Close()
	_ = guestConn.Close()
	<-uploaded
}
