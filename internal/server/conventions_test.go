package server

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/machine"
)

func TestAuthentication(t *testing.T) {
	h := newHarness(t)
	wrong := h.key[:99] + "x"
	for _, c := range []struct {
		name, key, path string
		status          int
	}{
		{"right key", h.key, "/vms", 200},
		{"no key", "", "/vms", 401},
		{"wrong key", wrong, "/vms", 401},
		{"key is only its id", h.key[:36], "/vms", 401},
		{"version without a key", "", "/system/version", 200},
		{"version with a wrong key", wrong, "/system/version", 401},
		{"health without a key", "", "!/health", 200},
		{"description without a key", "", "!/openapi.yaml", 200},
		{"unknown path without a key", "", "/nothing", 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := h.in(t).callAs(c.key, "GET", c.path, "")
			if a.status != c.status {
				t.Fatalf("status %d, want %d: %s", a.status, c.status, a.body)
			}
			if c.status == 401 {
				a.want(401).says("unauthorized")
				if a.header.Get("WWW-Authenticate") != "Bearer" {
					t.Error("no WWW-Authenticate")
				}
			}
		})
	}
	h.call("GET", "/vms", "", "Authorization", "Basic eDp5").want(401).says("Bearer")
	h.call("GET", "/vms", "", "Authorization", "bearer "+h.key).want(200)
}

func TestLocalSocket(t *testing.T) {
	h := newHarness(t)
	who := read[api.Whoami](h.send(h.unix, h.request("", "GET", "/whoami", "")).want(200))
	if who.OrgName != "acme" || who.KeyName != "local" {
		t.Errorf("without a key: %+v", who)
	}
	who = read[api.Whoami](h.send(h.unix, h.request(h.otherKey, "GET", "/whoami", "")).want(200))
	if who.OrgName != "other" || who.KeyName != "ci of other" || who.KeyID != h.otherKey[:36] {
		t.Errorf("with a key: %+v", who)
	}
	h.send(h.unix, h.request(h.key[:99]+"x", "GET", "/whoami", "")).want(401)
}

// Slashes in a row are one, without a redirect.
func TestSlashes(t *testing.T) {
	h := newHarness(t)
	for _, path := range []string{"!//api/v1/vms", "!/api//v1///vms", "!//api/v1/env_vars"} {
		h.call("GET", path, "").want(200)
	}
	vm := read[api.NewVM](h.call("POST", "!//api/v1//vm//new_root", `{"vm_config":{}}`).want(201)).VMID
	h.call("POST", "!//api/v1/vm/"+vm+"//commit", "").want(201)
	for _, path := range []string{"!/api/v1/../v1/vms", "!/api/v1/./vms", "/vms/", "!/", "!//"} {
		h.call("GET", path, "").want(404)
	}
	h.call("GET", "/repositories/a%2Fb", "").want(400) // a slash in a name is no separator, and no name
}

func TestUnknownRoutes(t *testing.T) {
	h := newHarness(t)
	h.call("GET", "/nothing", "").want(404).says("endpoint not found", "/api/v1/nothing")
	h.call("PUT", "/vm/"+ident.New(), "").want(405).says("PUT")
	a := h.call("POST", "/vms", "").want(405)
	if !strings.Contains(a.header.Get("Allow"), "GET") {
		t.Errorf("Allow: %q", a.header.Get("Allow"))
	}
}

// Bodies are JSON whatever they say they are; unknown fields and queries are ignored; an empty body gives no fields.
func TestBodies(t *testing.T) {
	h := newHarness(t)
	for _, kind := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8", "nonsense"} {
		req := h.request(h.key, "POST", "/repositories", fmt.Sprintf(`{"name":%q,"unknown":{"a":[1]}}`, ident.New()))
		if kind != "" {
			req.Header.Set("Content-Type", kind)
		}
		h.send(http.DefaultClient, req).want(201)
	}
	vm := h.newVM()
	h.call("POST", "/vm/"+vm+"/commit?recursive=true", "", "Content-Type", "application/json").want(201)
	h.call("POST", "/vm/"+vm+"/branch", "", "Content-Type", "application/json").want(201)
	h.call("GET", "/vms", "", "Accept", "application/x-ndjson").want(200)
	h.call("GET", "/vms", "", "Accept", "text/html").want(200)

	for name, c := range map[string]struct{ body, says string }{
		"no body":        {"", "request body is required"},
		"not JSON":       {"{", "body"},
		"wrong type":     {`{"name":1}`, "body.name"},
		"field missing":  {`{}`, "name"},
		"not an object":  {`[]`, "object"},
		"null":           {`null`, "object"},
		"two documents":  {`{"name":"a"}{}`, "body"},
		"invalid number": {`{"name":1e400}`, "body"},
	} {
		t.Run(name, func(t *testing.T) { h.in(t).call("POST", "/repositories", c.body).want(400).says(c.says) })
	}
	h.call("GET", "/commits?limit=x", "").want(400).says("limit")
	h.call("POST", "/vm/"+vm+"/branch?keep_paused=perhaps", "").want(400).says("keep_paused")
	h.call("POST", "/repositories", `{"name":"`+strings.Repeat("a", bodyLimit)+`"}`).want(413)
}

// The values that validation refuses are not repeated in the message: they may be secrets.
func TestRefusedValuesStaySecret(t *testing.T) {
	h := newHarness(t)
	a := h.call("PUT", "/env_vars", `{"vars":{"A":["s3cret"]}}`).want(400)
	if strings.Contains(a.body, "s3cret") {
		t.Errorf("answer: %s", a.body)
	}
	h.call("PUT", "/env_vars", `{"vars":{"A":"s3cret"}}`).want(200)
	for _, secret := range []string{"s3cret", h.key, h.key[36:]} {
		if strings.Contains(h.log.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	if !strings.Contains(h.log.String(), "path=/api/v1/env_vars status=200") {
		t.Errorf("no line for the request in the log: %s", h.log)
	}
}

func TestEmptyLists(t *testing.T) {
	h := newHarness(t)
	h.call("POST", "/repositories", `{"name":"r"}`).want(201)
	for path, field := range map[string]string{
		"/vms": "[]", "/vm": "[]", "/commits": `"commits":[]`, "/commits/public": `"commits":[]`,
		"/repositories/r/tags": `"tags":[]`, "/images": `"images":[]`, "/env_vars": `"vars":{}`,
	} {
		if a := h.call("GET", path, "").want(200); !strings.Contains(a.body, field) {
			t.Errorf("%s: %s lacks %s", path, a.body, field)
		}
	}
	if a := h.callAs(h.otherKey, "GET", "/repositories", "").want(200); !strings.Contains(a.body, `"repositories":[]`) {
		t.Errorf("repositories: %s", a.body)
	}
	vm := h.newVM()
	if a := h.call("GET", "/vms", "").want(200); !strings.Contains(a.body, `"labels":{}`) {
		t.Errorf("labels: %s", a.body)
	}
	if a := h.call("GET", "/vm/"+vm+"/logs", "").want(200); !strings.Contains(a.body, `"entries":[]`) {
		t.Errorf("entries: %s", a.body)
	}
}

// Every kind of fault has its status; what may be tried again and what not is said.
func TestFaults(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	for _, c := range []struct {
		err    error
		status int
		final  bool // on a call that makes something
	}{
		{fault.NotFoundf("a thing not found"), 404, false},
		{fault.Conflictf("a thing is taken"), 409, true},
		{fault.Invalidf("a thing is wrong"), 400, false},
		{fault.New(fault.Unauthenticated, "who"), 401, false},
		{fault.Forbiddenf("not yours"), 403, false},
		{fault.Exhaustedf("Insufficient system resources: asked for 1, free 0"), 507, true},
		{fault.Unavailablef("something is missing"), 503, true},
		{fault.New(fault.Timeout, "took long"), 504, true},
	} {
		t.Run(fault.KindOf(c.err).String(), func(t *testing.T) {
			for _, call := range []struct {
				method, path, body string
				creates            bool
			}{
				{"POST", "/vm/new_root", `{"vm_config":{}}`, true},
				{"POST", "/vm/" + vm + "/commit", "", true},
				{"POST", "/vm/branch/by_vm/" + vm, "", true},
				{"PATCH", "/vm/" + vm + "/state", `{"state":"Paused"}`, false},
			} {
				h.failNext(c.err)
				a := h.in(t).call(call.method, call.path, call.body).want(c.status).says(c.err.Error())
				final := c.final && (call.creates || c.status == 409 || c.status == 507)
				if got := a.header.Get(api.HeaderShouldRetry) == "false"; got != final {
					t.Errorf("%s: final is %v, want %v", call.path, got, final)
				}
			}
		})
	}
}

func TestInternalErrors(t *testing.T) {
	h := newHarness(t)
	h.failNext(errors.New("pq: password=s3cret"))
	a := h.call("POST", "/vm/new_root", `{"vm_config":{}}`).want(500)
	body := read[api.Error](a)
	if strings.Contains(a.body, "s3cret") || body.RequestID == "" || body.RequestID != a.header.Get(api.HeaderRequestID) {
		t.Errorf("answer %s", a.body)
	}
	if a.header.Get(api.HeaderShouldRetry) != "false" {
		t.Error("a call that makes something must not be tried again")
	}
	if log := h.log.String(); !strings.Contains(log, "s3cret") || !strings.Contains(log, body.RequestID) {
		t.Errorf("the log does not tell what happened: %s", log)
	}
}

func TestPanic(t *testing.T) {
	h := newHarness(t)
	h.server.guests = nil
	h.call("GET", "/vm/"+ident.New()+"/logs", "").want(500)
	if !strings.Contains(h.log.String(), "panic") {
		t.Error("the log does not mention the panic")
	}
	h.call("GET", "/vms", "").want(200)
}

// A body shorter than it said is the client's mistake; nothing is done.
func TestCutBody(t *testing.T) {
	h := newHarness(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	h.must(err)
	defer conn.Close()
	fmt.Fprintf(conn, "POST /api/v1/vm/new_root HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n{\"vm_config\":{}}", h.key)
	h.must(conn.(*net.TCPConn).CloseWrite())
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	h.must(err)
	resp.Body.Close()
	if resp.StatusCode != 400 || h.machines.runs != 0 {
		t.Errorf("status %d, %d VMs", resp.StatusCode, h.machines.runs)
	}
}

// Objects of one organisation do not exist for another one.
func TestIsolation(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	commit := h.newCommit(vm)
	h.call("POST", "/repositories", `{"name":"app"}`).want(201)
	h.call("POST", "/repositories/app/tags", `{"tag_name":"latest","commit_id":"`+commit+`"}`).want(201)
	h.call("PUT", "/env_vars", `{"vars":{"A":"1"}}`).want(200)
	h.callAs(h.otherKey, "POST", "/repositories", `{"name":"mine"}`).want(201)
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/vm/" + vm + "/status", ""},
		{"GET", "/vm/" + vm, ""},
		{"GET", "/vm/" + vm + "/metadata", ""},
		{"GET", "/vm/" + vm + "/ssh_key", ""},
		{"PATCH", "/vm/" + vm + "/state", `{"state":"paused"}`},
		{"PATCH", "/vm/" + vm + "/disk", `{"fs_size_mib":4096}`},
		{"PATCH", "/vm/" + vm + "/label", `{"labels":null}`},
		{"DELETE", "/vm/" + vm, ""},
		{"POST", "/vm/" + vm + "/commit", ""},
		{"POST", "/vm/" + vm + "/branch", ""},
		{"POST", "/vm/branch/by_vm/" + vm, ""},
		{"POST", "/vm/branch/by_commit/" + commit, ""},
		{"POST", "/vm/branch/by_ref/app/latest", ""},
		{"POST", "/vm/from_commit", `{"commit_id":"` + commit + `"}`},
		{"POST", "/vm/from_commit", `{"ref":"app:latest"}`},
		{"POST", "/vm/" + vm + "/exec", `{"command":["id"]}`},
		{"POST", "/vm/" + vm + "/exec/stream", `{"command":["id"]}`},
		{"POST", "/vm/" + vm + "/exec/stream/attach", `{"exec_id":"` + ident.New() + `"}`},
		{"POST", "/vm/" + vm + "/exec/signal", `{"exec_id":"` + ident.New() + `","signal":"INT"}`},
		{"GET", "/vm/" + vm + "/logs", ""},
		{"GET", "/vm/" + vm + "/files?path=/etc/motd", ""},
		{"PUT", "/vm/" + vm + "/files", `{"path":"/etc/x","content_b64":""}`},
		{"GET", "/vm/commits/" + commit + "/parents", ""},
		{"PATCH", "/commits/" + commit, `{"is_public":true}`},
		{"DELETE", "/commits/" + commit, ""},
		{"GET", "/repositories/app", ""},
		{"DELETE", "/repositories/app", ""},
		{"PATCH", "/repositories/app/visibility", `{"is_public":true}`},
		{"GET", "/repositories/app/tags", ""},
		{"POST", "/repositories/mine/tags", `{"tag_name":"x","commit_id":"` + commit + `"}`},
		{"GET", "/repositories/app/tags/latest", ""},
		{"PATCH", "/repositories/app/tags/latest", `{"description":null}`},
		{"DELETE", "/repositories/app/tags/latest", ""},
		{"DELETE", "/env_vars/A", ""},
	} {
		t.Run(c.method+" "+strings.NewReplacer(vm, "VM", commit, "COMMIT").Replace(c.path), func(t *testing.T) {
			h.in(t).callAs(h.otherKey, c.method, c.path, c.body).want(404).says("not found")
		})
	}
	for _, path := range []string{"/vms", "/commits", "/env_vars"} {
		if a := h.callAs(h.otherKey, "GET", path, "").want(200); strings.Contains(a.body, vm) || strings.Contains(a.body, commit) || strings.Contains(a.body, `"A"`) {
			t.Errorf("%s shows what is not theirs: %s", path, a.body)
		}
	}
	h.call("GET", "/vm/"+vm+"/status", "").want(200)
}

// Malformed ids are 400, except where older clients put aliases (404); "vm-" and capitals are accepted.
func TestIDs(t *testing.T) {
	h := newHarness(t)
	vm := h.newVM()
	commit := h.newCommit(vm)
	for _, id := range []string{"vm-" + vm, strings.ToUpper(vm), "VM-" + strings.ToUpper(vm)} {
		if got := read[api.VM](h.call("GET", "/vm/"+id+"/status", "").want(200)); got.VMID != vm {
			t.Errorf("%s is %s", id, got.VMID)
		}
		h.call("POST", "/vm/"+id+"/branch", "").want(201)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/vm/alias/status", "", 400},
		{"GET", "/vm/alias/metadata", "", 400},
		{"PATCH", "/vm/alias/state", `{"state":"Paused"}`, 400},
		{"PATCH", "/vm/alias/disk", `{"fs_size_mib":1}`, 400},
		{"PATCH", "/vm/alias/label", `{"labels":{}}`, 400},
		{"POST", "/vm/alias/commit", "", 400},
		{"POST", "/vm/" + vm + "/commit", `{"commit_id":"x"}`, 400},
		{"DELETE", "/vm/alias", "", 400},
		{"POST", "/vm/alias/branch", "", 400},
		{"POST", "/vm/branch/by_vm/alias", "", 400},
		{"POST", "/vm/branch/by_commit/" + commit + "0", "", 400},
		{"GET", "/vm/commits/" + commit[:35] + "/parents", "", 400},
		{"PATCH", "/commits/alias", `{"is_public":true}`, 400},
		{"DELETE", "/commits/alias", "", 400},
		{"GET", "/vm/alias/logs", "", 400},
		{"GET", "/vm/alias/files?path=/a", "", 400},
		{"GET", "/vm/alias/ssh_key", "", 404},
		{"POST", "/vm/alias/exec", `{"command":["id"]}`, 404},
		{"POST", "/vm/alias/exec/stream", `{"command":["id"]}`, 404},
		{"POST", "/vm/alias/exec/stream/attach", `{"exec_id":"` + ident.New() + `"}`, 404},
		{"POST", "/vm/" + vm + "/exec", `{"command":["id"],"exec_id":"x"}`, 400},
		{"POST", "/vm/" + vm + "/exec/stream/attach", `{"exec_id":"x"}`, 400},
		{"POST", "/vm/alias/exec/signal", `{"exec_id":"` + ident.New() + `","signal":"INT"}`, 404},
		{"POST", "/vm/" + vm + "/exec/signal", `{"exec_id":"x","signal":"INT"}`, 400},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) { h.in(t).call(c.method, c.path, c.body).want(c.status) })
	}
}

// A client that goes away does not stop what it has begun.
func TestClientLeaves(t *testing.T) {
	h := newHarness(t)
	h.machines.gate, h.machines.began, h.machines.ended = make(chan struct{}), make(chan struct{}), make(chan error, 1)
	conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
	h.must(err)
	fmt.Fprintf(conn, "POST /api/v1/vm/new_root HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 16\r\n\r\n{\"vm_config\":{}}", h.key)
	<-h.machines.began
	conn.Close()
	close(h.machines.gate)
	if err := <-h.machines.ended; err != nil {
		t.Errorf("the call was stopped: %v", err)
	}
	h.machines.mu.Lock()
	h.machines.gate = nil
	h.machines.mu.Unlock()
	caller := machine.Caller{OrgID: h.caller.OrgID}
	if vms, err := h.machines.List(t.Context(), caller); err != nil || len(vms) != 1 {
		t.Errorf("%d VMs, %v", len(vms), err)
	}
}
