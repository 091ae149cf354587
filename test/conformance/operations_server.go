package conformance

import (
	"crypto/ed25519"
	"crypto/rand"
	"strings"

	"golang.org/x/crypto/ssh"
)

func keyOperations() map[string]operation {
	newKey := func(w *world) string { return w.do("POST", "/keys", object{"name": "short-lived"}).text(w.t, "key_id") }
	return map[string]operation{
		"list-keys":          {status: 200},
		"list-organisations": {status: 200},
		"usage":              {status: 200},
		"create-key": {status: 201, secret: true, body: fixed(object{"name": "ci"}),
			check: func(w *world, a answer, _ map[string]string) {
				key := a.text(w.t, "api_key")
				who := w.doAs(key, "GET", "/whoami", nil)
				if who.text(w.t, "key_id") != a.text(w.t, "key_id") || who.text(w.t, "org_name") != w.organisation() {
					w.t.Error(who)
				}
				if list := w.do("GET", "/keys", nil); strings.Contains(list.body, key[36:]) || !strings.Contains(list.body, key[:36]) {
					w.t.Error(list)
				}
			},
			refused: []refusal{
				{why: "no name", body: fixed(object{}), status: 400, says: "name"},
				{why: "an empty name", body: fixed(object{"name": ""}), status: 400},
				{why: "control characters", body: fixed(object{"name": "a\x1b[2Jb"}), status: 400},
				{why: "a name that hides its direction", body: fixed(object{"name": "\u202egnp"}), status: 400},
				{why: "a long name", body: fixed(object{"name": strings.Repeat("x", 129)}), status: 400},
				{why: "an end in the past", body: fixed(object{"name": "x", "expires_at": "2001-01-01T00:00:00Z"}), status: 400, says: "over"},
			}},
		"revoke-key": {status: 204, path: at("id", newKey)},
	}
}

// newPublicKey gives an SSH key that nobody has.
func newPublicKey(w *world) string {
	w.t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	w.must(err)
	key, err := ssh.NewPublicKey(public)
	w.must(err)
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " somebody@host"
}

// newLogin gives e-mail and key of a request to log in that was let in.
func (w *world) newLogin() object {
	w.t.Helper()
	login := object{"email": w.unique("user") + "@example.org", "ssh_public_key": newPublicKey(w)}
	if a := w.send(call{method: "POST", path: "/api/shell-auth", body: login}); a.status != 200 {
		w.t.Fatal(a)
	}
	return login
}

func loginOperations() map[string]operation {
	start := func(w *world, _ map[string]string) object {
		return object{"email": w.unique("user") + "@example.org", "ssh_public_key": newPublicKey(w), "body": "hello"}
	}
	begun := func(w *world, _ map[string]string) object { return w.newLogin() }
	with := func(changes object) func(*world, map[string]string) object {
		return func(w *world, _ map[string]string) object {
			o := w.newLogin()
			for name, value := range changes {
				o[name] = value
			}
			return o
		}
	}
	return map[string]operation{
		"shell-auth": {status: 200, secret: true, body: start, refused: []refusal{
			{why: "no e-mail", body: with(object{"email": "nobody"}), status: 400, says: "email"},
			{why: "a name beside the e-mail", body: with(object{"email": "A <a@example.org>"}), status: 400},
			{why: "no key", body: with(object{"ssh_public_key": "ssh-ed25519 AAAA"}), status: 400, says: "ssh_public_key"},
			{why: "options of a key", body: func(w *world, _ map[string]string) object {
				return object{"email": "a@example.org", "ssh_public_key": `command="id" ` + newPublicKey(w)}
			}, status: 400, says: "options"},
			{why: "two keys", body: func(w *world, _ map[string]string) object {
				return object{"email": "a@example.org", "ssh_public_key": newPublicKey(w) + "\n" + newPublicKey(w)}
			}, status: 400},
		}},
		"shell-auth-verify-key": {status: 200, secret: true, body: begun, refused: []refusal{
			{why: "nobody asked", body: start, status: 404},
		}},
		"shell-auth-api-keys": {status: 200, secret: true,
			special: func(w *world) {
				login := w.newLogin()
				login["label"] = "vers-cli-host"
				made := w.send(call{method: "POST", path: "/api/shell-auth/api-keys", body: login})
				if made.status != 200 {
					w.t.Fatal(made)
				}
				w.doAs(made.text(w.t, "api_key"), "GET", "/vms", nil)
				if again := w.send(call{method: "POST", path: "/api/shell-auth/api-keys", body: login}); !again.isError(401) {
					w.t.Errorf("a login is good for one key: %s", again)
				}
				short := w.newLogin()
				short["label"] = "cli"
				if a := w.send(call{method: "POST", path: "/api/shell-auth/api-keys", body: short}); !a.isError(400) {
					w.t.Errorf("a short label: %s", a)
				}
			}},
		"shell-auth-verify-public-key": {status: 200, secret: true,
			body: func(w *world, _ map[string]string) object {
				return object{"ssh_public_key": w.newLogin()["ssh_public_key"]}
			},
			refused: []refusal{{why: "nobody's", body: func(w *world, _ map[string]string) object {
				return object{"ssh_public_key": newPublicKey(w)}
			}, status: 404}}},
	}
}

func domainOperations() map[string]operation {
	name := func(w *world) string { return w.unique("d") + ".example.org" }
	newDomain := func(w *world) string {
		return w.do("POST", "/domains", object{"vm_id": w.vm(), "domain": name(w)}).text(w.t, "domain_id")
	}
	named := func(domain string) func(*world, map[string]string) object {
		return func(w *world, _ map[string]string) object { return object{"vm_id": w.vm(), "domain": domain} }
	}
	refused := []refusal{
		{why: "no VM", body: fixed(object{"vm_id": unknownID, "domain": "a.example.org"}), status: 404},
		{why: "malformed VM", body: fixed(object{"vm_id": "x", "domain": "a.example.org"}), status: 400},
		{why: "somebody else's VM", body: named("a.example.org"), other: true, status: 404},
		{why: "taken", body: func(w *world, _ map[string]string) object {
			taken := name(w)
			w.do("POST", "/domains", object{"vm_id": w.vm(), "domain": taken})
			return object{"vm_id": w.vm(), "domain": strings.ToUpper(taken) + "."}
		}, status: 409, says: "taken"},
	}
	for _, bad := range append(noNames, "localhost", "127.0.0.1", "*.example.org", "-a.example.org", "a..org", strings.Repeat("a", 64)+".org", "bücher.example") {
		refused = append(refused, refusal{why: "named " + bad, body: named(bad), status: 400, says: "domain"})
	}
	return map[string]operation{
		"create-domain": {status: 201, refused: refused, body: func(w *world, _ map[string]string) object {
			return object{"vm_id": w.vm(), "domain": name(w)}
		}},
		"list-domains": {status: 200, refused: []refusal{{why: "no VM", query: "vm_id=" + unknownID, status: 404}}},
		"get-domain":   {status: 200, path: at("id", newDomain)},
		"delete-domain": {status: 200, path: at("id", newDomain), check: func(w *world, _ answer, path map[string]string) {
			if list := w.do("GET", "/domains", nil); strings.Contains(list.body, path["id"]) {
				w.t.Error(list)
			}
		}},
	}
}

// nowhere is a repository that cannot be reached.
const nowhere = "http://127.0.0.1:1/team/app.git"

func deployOperations() map[string]operation {
	newProject := func(w *world) string {
		return w.do("POST", "/deploy", object{"repo": nowhere, "name": w.unique("project")}).text(w.t, "project_id")
	}
	repo := func(text string) func(*world, map[string]string) object { return fixed(object{"repo": text}) }
	return map[string]operation{
		"deploy": {status: 202,
			body: func(w *world, _ map[string]string) object {
				return object{"repo": nowhere, "name": w.unique("project"), "branch": "main", "settings": object{"run_command": "true", "working_directory": "./a/"}}
			},
			check: func(w *world, a answer, _ map[string]string) {
				if p := w.do("GET", "/deploy/"+a.text(w.t, "project_id"), nil); p.text(w.t, "vm_id") != a.text(w.t, "vm_id") {
					w.t.Error(p)
				}
				if vm := w.do("GET", "/vm/"+a.text(w.t, "vm_id")+"/status", nil); vm.status != 200 {
					w.t.Error(vm)
				}
			},
			refused: []refusal{
				{why: "nothing", body: fixed(object{}), status: 400, says: "repo"},
				{why: "an empty repo", body: repo(""), status: 400},
				{why: "an option", body: repo("--upload-pack=id"), status: 400},
				{why: "another transport", body: repo("ext::sh -c id"), status: 400},
				{why: "a file", body: repo("file:///etc"), status: 400},
				{why: "a password", body: repo("https://user:secret@example.org/a/b"), status: 400, says: "credentials"},
				{why: "a bad branch", body: fixed(object{"repo": "a/b", "branch": "--x"}), status: 400, says: "branch"},
				{why: "a folder outside", body: fixed(object{"repo": "a/b", "settings": object{"working_directory": "../x"}}), status: 400, says: "working_directory"},
				{why: "a bad name", body: fixed(object{"repo": "a/b", "name": "../x"}), status: 400, says: "name"},
				{why: "taken", body: func(w *world, _ map[string]string) object {
					taken := w.unique("project")
					w.do("POST", "/deploy", object{"repo": nowhere, "name": taken})
					return object{"repo": nowhere, "name": taken}
				}, status: 409, says: "exists"},
			}},
		"list-projects": {status: 200},
		"get-project":   {status: 200, path: at("project_id", newProject)},
		"delete-project": {status: 204, path: at("project_id", newProject), check: func(w *world, _ answer, path map[string]string) {
			if list := w.do("GET", "/deploy", nil); strings.Contains(list.body, path["project_id"]) {
				w.t.Error(list)
			}
		}},
	}
}
