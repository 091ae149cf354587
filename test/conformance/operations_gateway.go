package conformance

import "strings"

func gatewayOperations() map[string]operation {
	add := func(w *world) string {
		return w.do("POST", "/ssh_keys", object{"ssh_public_key": newPublicKey(w)}).text(w.t, "key_id")
	}
	key := func(changes object) func(*world, map[string]string) object {
		return func(w *world, _ map[string]string) object {
			o := object{"ssh_public_key": newPublicKey(w)}
			for name, value := range changes {
				o[name] = value
			}
			return o
		}
	}
	return map[string]operation{
		"gateway": {status: 200, check: func(w *world, a answer, _ map[string]string) {
			if !strings.HasPrefix(a.text(w.t, "ssh_authority"), "ssh-ed25519 ") || !strings.Contains(a.text(w.t, "certificate_authority"), "BEGIN CERTIFICATE") {
				w.t.Error(a)
			}
		}},
		"vm-url": {status: 200, path: at("id", (*world).vm), body: fixed(object{"port": 3000}),
			check: func(w *world, a answer, path map[string]string) {
				if u := a.text(w.t, "url"); !strings.HasPrefix(u, "https://3000-"+path["id"]+".") {
					w.t.Error(a)
				}
			},
			refused: []refusal{
				{why: "no port", body: fixed(object{"port": 70000}), status: 400, says: "port"},
				{why: "a domain of nobody", body: fixed(object{"domain": "nobody.example.org"}), status: 404},
				{why: "a link for ever", body: fixed(object{"expires_in_seconds": 1 << 40}), status: 400},
			}},
		"list-ssh-keys": {status: 200},
		"add-ssh-key": {status: 201, body: key(nil),
			check: func(w *world, a answer, _ map[string]string) {
				if a.text(w.t, "name") != "somebody@host" || !strings.HasPrefix(a.text(w.t, "fingerprint"), "SHA256:") {
					w.t.Error(a)
				}
				if list := w.do("GET", "/ssh_keys", nil); !strings.Contains(list.body, a.text(w.t, "key_id")) {
					w.t.Error(list)
				}
			},
			refused: []refusal{
				{why: "no key", body: fixed(object{}), status: 400, says: "ssh_public_key"},
				{why: "a private key", body: key(object{"ssh_public_key": "-----BEGIN OPENSSH PRIVATE KEY-----"}), status: 400},
				{why: "options", body: func(w *world, _ map[string]string) object {
					return object{"ssh_public_key": `command="id" ` + newPublicKey(w)}
				}, status: 400, says: "options"},
				{why: "control characters", body: key(object{"name": "a\x1b[2Jb"}), status: 400, says: "name"},
				{why: "a key that is there", body: func(w *world, _ map[string]string) object {
					line := newPublicKey(w)
					w.do("POST", "/ssh_keys", object{"ssh_public_key": line})
					return object{"ssh_public_key": line}
				}, status: 409, says: "already"},
			}},
		"remove-ssh-key": {status: 204, path: at("id", add), check: func(w *world, _ answer, path map[string]string) {
			if list := w.do("GET", "/ssh_keys", nil); strings.Contains(list.body, path["id"]) {
				w.t.Error(list)
			}
		}},
	}
}
