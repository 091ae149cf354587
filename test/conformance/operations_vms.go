package conformance

import "time"

import "strings"

func (w *world) state(vm string) string {
	w.t.Helper()
	return w.do("GET", "/vm/"+vm+"/status", nil).text(w.t, "state")
}

func (w *world) pausedVM() string {
	w.t.Helper()
	vm := w.newVM()
	w.do("PATCH", "/vm/"+vm+"/state", object{"state": "Paused"})
	return vm
}

// noSuchVM expects that a VM has left.
func (w *world) noSuchVM(vm string) {
	w.t.Helper()
	if a := w.send(call{method: "GET", path: "/api/v1/vm/" + vm + "/status", key: w.target.Key}); !a.isError(404) {
		w.t.Errorf("a deleted VM: %s", a)
	}
	if a := w.do("GET", "/vms", nil); strings.Contains(a.body, vm) {
		w.t.Errorf("a deleted VM is listed: %s", a)
	}
}

// contents: "0123456789" is in a file. What is written in place begins at the offset, and the file ends after it.
func (w *world) contents(path string) {
	file := "path=/root/deep/content"
	for _, step := range []struct{ query, raw, want string }{
		{"&in_place=true&offset=4", "abc", "0123abc"},
		{"&in_place=true&offset=7", "", "0123abc"},
		{"&in_place=true", "new", "new"},
		{"", "", ""},
	} {
		if a := w.send(call{method: "PUT", path: path, query: file + step.query, raw: step.raw, contentType: "application/octet-stream", key: w.target.Key}); a.status != 200 {
			w.t.Fatalf("%s: %s", step.query, a)
		}
		if a := w.send(call{method: "GET", path: path, query: file, key: w.target.Key}); a.status != 200 || a.body != step.want {
			w.t.Errorf("after %q: %s, want %q", step.query, a, step.want)
		}
	}
}

func vmOperations() map[string]operation {
	shared := at("id", (*world).vm)
	sizes := func(field string, value any) func(*world, map[string]string) object {
		return fixed(object{"vm_config": object{field: value}})
	}
	return map[string]operation{
		"list-vms": {status: 200},
		"new-root-vm": {status: 201, query: "wait_boot=true", body: sizes("mem_size_mib", smallVM),
			check: func(w *world, a answer, _ map[string]string) {
				id := a.text(w.t, "vm_id")
				if state := w.state(id); state != "running" {
					w.t.Errorf("after wait_boot=true the VM is %s", state)
				}
				w.do("DELETE", "/vm/"+id, nil)
			},
			refused: []refusal{
				{why: "no vm_config", body: fixed(object{}), status: 400},
				{why: "no memory", body: sizes("mem_size_mib", -1), status: 400, says: "Invalid memory size (must be positive)"},
				{why: "no vCPU", body: sizes("vcpu_count", -4), status: 400, says: "Invalid vCPU count"},
				{why: "no disk", body: sizes("fs_size_mib", -1), status: 400, says: "Invalid filesystem size"},
				{why: "unknown image", body: sizes("image_name", "custom-image"), status: 404, says: "rootfs image 'custom-image' not found"},
				{why: "unknown kernel", body: sizes("kernel_name", "nix"), status: 404, says: "kernel image 'nix' not found"},
				{why: "no egress policy", body: fixed(object{"vm_config": object{}, "egress": object{"mode": "everything"}}), status: 400, says: "egress mode"},
				{why: "image outside", body: sizes("image_name", "../../etc/passwd"), status: 404},
			}},
		"restore-vm": {status: 201,
			body: func(w *world, _ map[string]string) object { return object{"commit_id": w.commit()} },
			check: func(w *world, a answer, _ map[string]string) {
				id := a.text(w.t, "vm_id")
				if got := w.do("GET", "/vm/"+id+"/metadata", nil).text(w.t, "parent_commit_id"); got != w.commit() {
					w.t.Errorf("parent_commit_id is %s", got)
				}
				w.do("DELETE", "/vm/"+id, nil)
			},
			refused: []refusal{
				{why: "nothing named", body: fixed(object{}), status: 400},
				{why: "two things named", body: func(w *world, _ map[string]string) object {
					return object{"commit_id": w.commit(), "ref": "a:b"}
				}, status: 400},
				{why: "unknown commit", body: fixed(object{"commit_id": unknownID}), status: 404},
				{why: "unknown reference", body: fixed(object{"ref": "no-such:tag"}), status: 404},
				{why: "unknown tag", body: fixed(object{"tag_name": "no-such-tag"}), status: 404},
				{why: "no reference", body: fixed(object{"ref": "my-app"}), status: 400, says: "Invalid ref format"},
				{why: "reference into another organisation", body: fixed(object{"ref": "vers/app:latest"}), status: 400, says: "fork"},
				{why: "no egress rule", body: func(w *world, _ map[string]string) object {
					return object{"commit_id": w.commit(), "egress": object{"deny": []string{"x"}}}
				}, status: 400, says: "deny list"},
				{why: "commit of somebody else", body: func(w *world, _ map[string]string) object {
					return object{"commit_id": w.foreignCommit(false)}
				}, status: 404},
				{why: "as another organisation", other: true, status: 404},
			}},
		"vm-status":   {status: 200, path: shared},
		"vm-metadata": {status: 200, path: shared},
		"vm-ssh-key": {status: 200, path: shared, check: func(w *world, a answer, _ map[string]string) {
			if key := a.text(w.t, "ssh_private_key"); !strings.HasPrefix(key, "-----BEGIN OPENSSH PRIVATE KEY-----") {
				w.t.Errorf("no key: %s", a)
			}
		}},
		"set-vm-state": {status: 200, path: at("id", (*world).newVM), body: fixed(object{"state": "Paused"}),
			check: func(w *world, _ answer, path map[string]string) {
				for _, step := range []struct{ ask, want string }{{"paused", "paused"}, {"RUNNING", "running"}, {"Running", "running"}} {
					w.do("PATCH", "/vm/"+path["id"]+"/state", object{"state": step.ask})
					if got := w.state(path["id"]); got != step.want {
						w.t.Errorf("asked for %s it is %s", step.ask, got)
					}
				}
			},
			refused: []refusal{
				{why: "no state", body: fixed(object{"state": "sleeping"}), status: 400},
				{why: "nothing asked", body: fixed(object{}), status: 400},
			}},
		"resize-vm-disk": {status: 200, path: at("id", (*world).newVM), body: fixed(object{"fs_size_mib": 1100}),
			refused: []refusal{
				{why: "the same size", body: fixed(object{"fs_size_mib": 1024}), status: 400, says: "only grow"},
				{why: "smaller", body: fixed(object{"fs_size_mib": 512}), status: 400},
				{why: "negative", body: fixed(object{"fs_size_mib": -1}), status: 400},
				{why: "a paused VM", path: at("id", (*world).pausedVM), status: 409, says: "resume it"},
			}},
		"sleep-vm": {status: 200, path: at("id", (*world).newVM),
			check: func(w *world, _ answer, path map[string]string) {
				if got := w.state(path["id"]); got != "sleeping" {
					w.t.Errorf("put to sleep it is %s", got)
				}
				w.do("PATCH", "/vm/"+path["id"]+"/state", object{"state": "Running"})
				if got := w.state(path["id"]); got != "running" {
					w.t.Errorf("resumed it is %s", got)
				}
			},
			refused: []refusal{
				{why: "a paused VM", path: at("id", (*world).pausedVM), status: 409, says: "only a running VM"},
			}},
		"set-vm-terms": {status: 200, path: at("id", (*world).newVM), body: fixed(object{"sleep_after_seconds": 1800, "ttl_seconds": 7200}),
			check: func(w *world, _ answer, path map[string]string) {
				meta := func() object { return w.do("GET", "/vm/"+path["id"]+"/metadata", nil).json(w.t).(object) }
				if m := meta(); m["sleep_after_seconds"] != 1800.0 || m["expires_at"] == nil {
					w.t.Errorf("the terms are not there: %v", m)
				}
				w.do("PATCH", "/vm/"+path["id"]+"/terms", object{"ttl_seconds": 0})
				if m := meta(); m["sleep_after_seconds"] != 1800.0 || m["expires_at"] != nil {
					w.t.Errorf("the end was taken back: %v", m)
				}
			},
			refused: []refusal{
				{why: "less than can be measured", body: fixed(object{"sleep_after_seconds": 1}), status: 400},
				{why: "negative", body: fixed(object{"ttl_seconds": -1}), status: 400},
			}},
		"label-vm": {status: 200, path: shared, body: fixed(object{"labels": object{"team": "red"}}),
			check: func(w *world, _ answer, path map[string]string) {
				if a := w.do("GET", "/vm/"+path["id"]+"/status", nil); !strings.Contains(a.body, `"team":"red"`) {
					w.t.Errorf("the label is not there: %s", a)
				}
				w.do("PATCH", "/vm/"+path["id"]+"/label", object{"labels": nil})
				if a := w.do("GET", "/vm/"+path["id"]+"/status", nil); strings.Contains(a.body, "red") {
					w.t.Errorf("null does not clear: %s", a)
				}
			}},
		"delete-vm": {status: 200, path: at("id", (*world).newVM), query: "recursive=true",
			check: func(w *world, a answer, path map[string]string) {
				if a.text(w.t, "vm_id") != path["id"] {
					w.t.Error(a)
				}
				w.noSuchVM(path["id"])
			}},
		"vm-ssh": {special: func(w *world) {
			c := call{method: "POST", path: "/api/v1/vm/" + w.vm() + "/ssh", key: w.target.Key}
			if a := w.send(c); !a.isError(426) || a.header.Get("Upgrade") != "vers-ssh" {
				w.t.Errorf("without an upgrade: %s", a)
			}
		}},
	}
}

func branchOperations() map[string]operation {
	one := func(w *world, a answer, _ map[string]string) {
		o := a.json(w.t).(object)
		vms, _ := o["vms"].([]any)
		if len(vms) != 1 || vms[0].(object)["vm_id"] != o["vm_id"] {
			w.t.Fatalf("not one VM: %s", a)
		}
		id := a.text(w.t, "vm_id")
		if state := w.state(id); state != "running" {
			w.t.Errorf("a child is %s", state)
		}
		w.do("DELETE", "/vm/"+id, nil)
	}
	counts := []refusal{
		{why: "none", query: "count=0", status: 400, says: `"vms":[]`},
		{why: "less than none", query: "count=-1", status: 400, says: `"vms":[]`},
		{why: "too many", query: "count=1000000", status: 400, says: `"vms":[]`},
	}
	return map[string]operation{
		"branch": {status: 201, path: at("id", (*world).vm), refused: counts[:2],
			check: func(w *world, a answer, path map[string]string) {
				child := w.do("GET", "/vm/"+a.text(w.t, "vm_id")+"/metadata", nil)
				if child.text(w.t, "parent_commit_id") != a.text(w.t, "commit_id") || child.text(w.t, "grandparent_vm_id") != path["id"] {
					w.t.Errorf("%s\nof %s", child, a)
				}
				one(w, a, path)
			}},
		"branch-vm":     {status: 201, path: at("id", (*world).vm), check: one, refused: counts, query: "count=1&keep_paused=false&skip_wait_boot=true"},
		"branch-commit": {status: 201, path: at("id", (*world).commit), check: one, refused: counts},
		"branch-tag":    {status: 201, path: at("tag", (*world).newTag), check: one, refused: counts},
		"branch-ref": {status: 201, check: one, refused: counts, query: "keep_paused=true", path: func(w *world) map[string]string {
			return map[string]string{"repo": w.newRepository(), "tag": "latest"}
		}},
	}
}

func commandOperations() map[string]operation {
	shared := at("id", (*world).vm)
	command := fixed(object{"command": []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, "env": object{"A": "b"}, "exec_id": nil})
	refused := []refusal{
		{why: "no command", body: fixed(object{}), status: 400},
		{why: "empty command", body: fixed(object{"command": []string{}}), status: 400},
		{why: "negative time", body: fixed(object{"command": []string{"true"}, "timeout_secs": -1}), status: 400},
		{why: "malformed exec_id", body: fixed(object{"command": []string{"true"}, "exec_id": "x"}), status: 400},
		{why: "a paused VM", path: at("id", (*world).pausedVM), status: 409, says: "paused"},
	}
	lines := func(w *world, a answer, _ map[string]string) {
		if !strings.Contains(a.body, `"type":"exit"`) || !strings.Contains(a.body, `"exit_code":3`) || strings.Count(a.body, `"type":"chunk"`) != 2 {
			w.t.Error(a)
		}
	}
	const execID = "11111111-2222-4333-8444-555555555555"
	return map[string]operation{
		"exec": {status: 200, path: shared, body: command, refused: refused, check: func(w *world, a answer, _ map[string]string) {
			if a.text(w.t, "stdout") != "out\n" || a.text(w.t, "stderr") != "err\n" || a.json(w.t).(object)["exit_code"] != 3.0 {
				w.t.Error(a)
			}
		}},
		"exec-stream": {special: func(w *world) {
			c := call{method: "POST", path: "/api/v1/vm/{id}/exec/stream", values: shared(w), body: command(w, nil), key: w.target.Key}
			for _, r := range refused {
				w.refuse(c, r)
			}
			if a := w.send(c); a.status != 200 {
				w.t.Error(a)
			} else {
				lines(w, a, nil)
			}
			c.key = w.target.OtherKey
			if a := w.send(c); !a.isError(404) {
				w.t.Errorf("as another organisation: %s", a)
			}
		}},
		"exec-attach": {special: func(w *world) {
			body := command(w, nil)
			body["exec_id"] = execID
			w.do("POST", "/vm/"+w.vm()+"/exec/stream", body)
			c := call{method: "POST", path: "/api/v1/vm/{id}/exec/stream/attach", values: shared(w), body: object{"exec_id": execID, "cursor": 0}, key: w.target.Key}
			for range 2 { // of a finished command too, as often as one likes
				if a := w.send(c); a.status != 200 {
					w.t.Error(a)
				} else {
					lines(w, a, nil)
				}
			}
			w.refuse(c, refusal{body: fixed(object{"exec_id": unknownID}), status: 404})
			w.refuse(c, refusal{body: fixed(object{}), status: 400})
			w.refuse(c, refusal{other: true, body: fixed(c.body), status: 404})
		}},
		"exec-signal": {special: func(w *world) {
			const id = "22222222-2222-4333-8444-555555555555"
			body := object{"command": []string{"sleep", "600"}, "exec_id": id, "timeout_secs": 60}
			ended := make(chan answer, 1)
			go func() {
				ended <- w.send(call{method: "POST", path: "/api/v1/vm/{id}/exec", values: shared(w), body: body, key: w.target.Key})
			}()
			c := call{method: "POST", path: "/api/v1/vm/{id}/exec/signal", values: shared(w), body: object{"exec_id": id, "signal": "USR1"}, key: w.target.Key}
			sent := w.send(c)
			for end := time.Now().Add(time.Minute); sent.status == 404 && time.Now().Before(end); sent = w.send(c) {
				time.Sleep(20 * time.Millisecond) // until it has started
			}
			if sent.status != 204 {
				w.t.Error(sent)
			}
			if a := <-ended; a.status != 200 || a.json(w.t).(map[string]any)["exit_code"] != 138.0 {
				w.t.Errorf("not ended by the signal: %s", a)
			}
			w.refuse(c, refusal{body: fixed(c.body), status: 409})
			w.refuse(c, refusal{body: fixed(object{"exec_id": unknownID, "signal": "INT"}), status: 404})
			w.refuse(c, refusal{body: fixed(object{"exec_id": id, "signal": "NONE"}), status: 400})
			w.refuse(c, refusal{other: true, body: fixed(c.body), status: 404})
		}},
		"vm-logs": {status: 200, path: shared, query: "offset=0&max_entries=5&stream=stdout", refused: []refusal{
			{why: "negative offset", query: "offset=-1", status: 400},
			{why: "no stream", query: "stream=both", status: 400},
		}},
		"write-file": {status: 200, path: shared, body: fixed(object{"path": "/root/new/file", "content_b64": "aGVsbG8K", "mode": 384, "create_dirs": true}),
			check: func(w *world, _ answer, path map[string]string) {
				a := w.send(call{method: "GET", path: "/api/v1/vm/" + path["id"] + "/files", query: "path=/root/new/file", key: w.target.Key})
				if a.text(w.t, "content_b64") != "aGVsbG8K" {
					w.t.Error(a)
				}
			},
			refused: []refusal{
				{why: "relative path", body: fixed(object{"path": "x", "content_b64": ""}), status: 400},
				{why: "no path", body: fixed(object{"content_b64": ""}), status: 400},
				{why: "no base64", body: fixed(object{"path": "/root/x", "content_b64": "?"}), status: 400},
				{why: "no such directory", body: fixed(object{"path": "/no/such/dir/x", "content_b64": ""}), status: 404},
				{why: "a directory", body: fixed(object{"path": "/root", "content_b64": ""}), status: 400},
			}},
		"write-content": {status: 200, secret: true, path: shared, query: "path=/root/deep/content&mode=600&create_dirs=true", raw: func(*world) string { return "0123456789" },
			check: func(w *world, _ answer, path map[string]string) {
				w.contents("/api/v1/vm/" + path["id"] + "/files/content")
			},
			refused: []refusal{
				{why: "relative path", query: "path=x", status: 400},
				{why: "no path", query: "mode=600", status: 400},
				{why: "decimal mode", query: "path=/root/x&mode=0x1ff", status: 400, says: "octal"},
				{why: "set-user-ID", query: "path=/root/x&mode=4755", status: 400, says: "octal"},
				{why: "no such directory", query: "path=/no/such/dir/x", status: 404},
				{why: "a directory", query: "path=/root", status: 400},
				{why: "in place, and nothing there", query: "path=/root/none&in_place=true", status: 404},
				{why: "offset, not in place", query: "path=/root/none&offset=1", status: 400, says: "in place"},
			}},
		"read-content": {status: 200, path: func(w *world) map[string]string {
			w.do("PUT", "/vm/"+w.vm()+"/files", object{"path": "/root/to-read", "content_b64": "AAE="})
			return shared(w)
		}, query: "path=/root/to-read&offset=1", refused: []refusal{
			{why: "no such file", query: "path=/no/such", status: 404},
			{why: "relative path", query: "path=x", status: 400},
			{why: "no path", query: "offset=1", status: 400},
			{why: "a directory", query: "path=/root", status: 400},
			{why: "a device", query: "path=/dev/zero", status: 400},
			{why: "beyond the end", query: "path=/root/to-read&offset=3", status: 400, says: "offset"},
			{why: "before the beginning", query: "path=/root/to-read&offset=-1", status: 400},
		}, check: func(w *world, a answer, _ map[string]string) {
			if a.body != "\x01" || a.header.Get("Content-Length") != "1" {
				w.t.Errorf("%q: %s", a.body, a)
			}
		}},
		"read-file": {status: 200, path: func(w *world) map[string]string {
			w.do("PUT", "/vm/"+w.vm()+"/files", object{"path": "/root/to-read", "content_b64": "AAE="})
			return shared(w)
		}, query: "path=/root/to-read", refused: []refusal{
			{why: "no such file", query: "path=/no/such", status: 404},
			{why: "relative path", query: "path=x", status: 400},
			{why: "no path", query: "a=b", status: 400},
			{why: "a directory", query: "path=/root", status: 400},
		}},
	}
}
