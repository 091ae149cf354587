package conformance

import "strings"

// networkOperations are those about what a VM may reach.
func networkOperations() map[string]operation {
	return map[string]operation{
		"vm-egress": {status: 200, path: at("id", (*world).vm),
			check: func(w *world, a answer, _ map[string]string) {
				if !strings.Contains(a.body, `"of":"server"`) {
					w.t.Errorf("the server's policy is not shown: %s", a)
				}
			}},
		"set-vm-egress": {status: 200, path: at("id", (*world).newVM),
			body: fixed(object{"egress": object{"mode": "none", "allow": []string{"Example.org:443", "10.0.0.0/8:80"}, "bytes_per_second": 1 << 20},
				"internal": true, "alias": "db"}),
			check: func(w *world, a answer, path map[string]string) {
				for _, want := range []string{`"example.org:443"`, `"of":"VM"`, `"text":"none,allow=example.org:443,10.0.0.0/8:80,bandwidth=1MiB"`, `"db.internal"`} {
					if !strings.Contains(a.body, want) {
						w.t.Errorf("%s is not in the answer: %s", want, a)
					}
				}
				if got := w.do("GET", "/vm/"+path["id"]+"/metadata", nil).text(w.t, "egress"); !strings.HasPrefix(got, "none,allow=") {
					w.t.Errorf("the VM's data has the policy %q", got)
				}
				w.inherited(path["id"])
				// What is left out stays; an empty policy is none.
				if a := w.do("PUT", "/vm/"+path["id"]+"/egress", object{"egress": object{}}); strings.Contains(a.body, `"of":"VM"`) || !strings.Contains(a.body, `"internal":true`) {
					w.t.Errorf("without a policy of its own: %s", a)
				}
			},
			refused: []refusal{
				{why: "unknown mode", body: fixed(object{"egress": object{"mode": "open"}}), status: 400, says: "unknown"},
				{why: "no rule", body: fixed(object{"egress": object{"mode": "none", "allow": []string{"10.1.2.3/8"}}}), status: 400, says: "did you mean"},
				{why: "allow without a mode", body: fixed(object{"egress": object{"allow": []string{"10.0.0.1"}}}), status: 400, says: "needs a mode"},
				{why: "bandwidth below 1 KiB", body: fixed(object{"egress": object{"bytes_per_second": 3}}), status: 400, says: "bandwidth"},
				{why: "no connections", body: fixed(object{"egress": object{"connections_per_second": -1}}), status: 400},
				{why: "no alias", body: fixed(object{"alias": "../x"}), status: 400, says: "alias"},
				{why: "empty alias", body: fixed(object{"alias": ""}), status: 400, says: "alias"},
				{why: "as another organisation", other: true, status: 404},
			}},
	}
}

// inherited branches a VM and looks whether the child has its policy.
func (w *world) inherited(vm string) {
	w.t.Helper()
	child := w.do("POST", "/vm/"+vm+"/branch", nil).text(w.t, "vm_id")
	if a := w.do("GET", "/vm/"+child+"/egress", nil); !strings.Contains(a.body, `"of":"VM"`) || !strings.Contains(a.body, `"internal":true`) {
		w.t.Errorf("a child's policy: %s", a)
	}
	w.do("DELETE", "/vm/"+child, nil)
	other := w.do("POST", "/vm/"+vm+"/branch", object{"egress": object{"mode": "internet"}, "internal": false, "alias": "child"}).text(w.t, "vm_id")
	if a := w.do("GET", "/vm/"+other+"/egress", nil); !strings.Contains(a.body, `"mode":"internet"`) || strings.Contains(a.body, `"internal":true`) {
		w.t.Errorf("the policy of a child that was given one: %s", a)
	}
	w.do("DELETE", "/vm/"+other, nil)
}
