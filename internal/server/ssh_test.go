package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"vers/api"
	"vers/internal/ident"
	"vers/internal/machine"
)

func (h *harness) dial() net.Conn {
	h.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	h.must(err)
	h.t.Cleanup(func() { conn.Close() })
	return conn
}

func TestSSH(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	for _, method := range []string{"GET", "POST"} {
		conn := h.dial()
		// The first bytes of the session come in one packet with the request.
		fmt.Fprintf(conn, "%s //api/v1/vm/%s/ssh HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: keep-alive, Upgrade\r\nUpgrade: vers-ssh\r\n%s: k\r\n\r\nearly ",
			method, vm, h.key, api.HeaderIdempotencyKey)
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		h.must(err)
		if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != api.UpgradeSSH {
			t.Fatalf("%s: %s %v", method, resp.Status, resp.Header)
		}
		line, err := r.ReadString('\n')
		h.must(err)
		fmt.Fprint(conn, "late")
		echo := make([]byte, len("early late"))
		if _, err := io.ReadFull(r, echo); err != nil || line != "SSH-2.0-fake\r\n" || string(echo) != "early late" {
			t.Errorf("%s: got %q and %q, %v", method, line, echo, err)
		}
		if sessions := read[api.Health](h.callAs("", "GET", "!/health", "").want(200)).Connections.SSH; sessions != 1 {
			t.Errorf("%d sessions", sessions)
		}
		h.must(conn.(*net.TCPConn).CloseWrite())
		if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
			t.Errorf("at the end: %q, %v", rest, err)
		}
		// The client sees the end of its connection a moment before the server has counted it.
		for deadline := time.Now().Add(time.Minute); h.server.sshSessions.Load() != 0; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatal("the session is never counted as ended")
			}
		}
	}
}

func TestSSHRefused(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	a := h.call("POST", "/vm/"+vm+"/ssh", "").want(426).says("vers-ssh")
	if a.header.Get("Upgrade") != api.UpgradeSSH {
		t.Error("no header Upgrade")
	}
	upgrade := []string{"Connection", "Upgrade", "Upgrade", api.UpgradeSSH}
	h.call("POST", "/vm/"+vm+"/ssh", "", "Connection", "Upgrade", "Upgrade", "websocket").want(426)
	h.call("POST", "/vm/"+ident.New()+"/ssh", "", upgrade...).want(404)
	h.call("POST", "/vm/alias/ssh", "", upgrade...).want(404)
	h.callAs(h.otherKey, "POST", "/vm/"+vm+"/ssh", "", upgrade...).want(404)
	h.callAs("", "POST", "/vm/"+vm+"/ssh", "", upgrade...).want(401)
	h.setVM(vm, func(vm *machine.VM) { vm.State = "paused" })
	h.call("POST", "/vm/"+vm+"/ssh", "", upgrade...).want(409)
}
