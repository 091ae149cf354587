package conformance

import (
	"archive/tar"
	"encoding/base64"
	"encoding/json"
	"strings"
)

// archive gives a tar archive of files by name.
func (w *world) archive(files map[string]string) string {
	w.t.Helper()
	var b strings.Builder
	a := tar.NewWriter(&b)
	for name, text := range files {
		w.must(a.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(text))}))
		_, err := a.Write([]byte(text))
		w.must(err)
	}
	w.must(a.Close())
	return b.String()
}

// tree is a root file system, as far as images go.
func (w *world) tree() string { return w.archive(map[string]string{"etc/os-release": "ID=tree\n"}) }

// newImage makes a rootfs image and gives its name.
func (w *world) newImage() string {
	w.t.Helper()
	name := w.unique("image")
	a := w.send(call{method: "POST", path: "/api/v1/images/upload", query: "image_name=" + name, raw: w.tree(), key: w.target.Key})
	if a.status != 201 {
		w.t.Fatal(a)
	}
	return name
}

func (w *world) newImageID() string {
	w.t.Helper()
	return w.do("GET", "/images/"+w.newImage(), nil).text(w.t, "base_image_id")
}

func imageOperations() map[string]operation {
	docker := func(ref string) object { return object{"type": "docker", "image_ref": ref} }
	named := func(name string) func(*world, map[string]string) object {
		return fixed(object{"image_name": name, "source": docker("base:1")})
	}
	refused := []refusal{
		{why: "no source", body: fixed(object{"image_name": "x"}), status: 400, says: "source"},
		{why: "an unknown source", body: fixed(object{"image_name": "x", "source": object{"type": "ftp"}}), status: 400, says: "docker"},
		{why: "no reference", body: fixed(object{"image_name": "x", "source": object{"type": "docker"}}), status: 400, says: "image_ref"},
		{why: "an empty reference", body: fixed(object{"image_name": "x", "source": docker(" ")}), status: 400, says: "image_ref"},
		{why: "S3", body: fixed(object{"image_name": "x", "source": object{"type": "s3", "bucket": "b", "key": "k"}}), status: 501, says: "S3"},
		{why: "the server's own name", body: named("default"), status: 400, says: "protected"},
		{why: "less than nothing", body: fixed(object{"image_name": "x", "source": docker("a"), "size_mib": -1}), status: 400, says: "size_mib"},
		{why: "taken", body: func(w *world, _ map[string]string) object {
			return object{"image_name": w.newImage(), "source": docker("base:1")}
		}, status: 409, says: "exists"},
	}
	uploads := []refusal{
		{why: "no name", query: "size_mib=600", status: 400, says: "image_name"},
		{why: "the server's own name", query: "image_name=default", status: 400, says: "protected"},
		{why: "too large a size", query: "image_name=x&size_mib=99999", status: 400, says: "32768"},
		{why: "no archive", raw: strings.Repeat("x", 1024), status: 400, says: "archive"},
	}
	for _, name := range noNames {
		refused = append(refused, refusal{why: "named " + name, body: named(name), status: 400})
	}
	gone := func(w *world, _ answer, path map[string]string) {
		if a := w.send(call{method: "GET", path: "/api/v1/images/" + path["id"], key: w.target.Key}); !a.isError(404) {
			w.t.Error(a)
		}
	}
	mine := func(w *world, a answer, path map[string]string) {
		if a.text(w.t, "image_name") != path["name"] {
			w.t.Error(a)
		}
	}
	return map[string]operation{
		"list-images": {status: 200, check: func(w *world, _ answer, _ map[string]string) {
			name := w.newImage()
			if list := w.do("GET", "/images?limit=1", nil); !strings.Contains(list.body, name) {
				w.t.Errorf("not the newest first: %s", list)
			}
			if list := w.doAs(w.target.OtherKey, "GET", "/images", nil); strings.Contains(list.body, name) {
				w.t.Errorf("another organisation sees it: %s", list)
			}
		}},
		"get-image":    {status: 200, path: at("name", (*world).newImage), check: mine},
		"image-status": {status: 200, path: at("name", (*world).newImage), check: mine},
		"create-image": {status: 201, refused: refused, body: func(w *world, _ map[string]string) object {
			return object{"image_name": w.unique("pulled"), "source": docker("base:1"), "description": "base", "size_mib": 0}
		}, check: func(w *world, a answer, _ map[string]string) {
			w.do("GET", "/images/"+a.text(w.t, "image_name")+"/status", nil)
		}},
		"upload-image": {status: 201, secret: true, query: "image_name=uploaded&replace=true", raw: (*world).tree, refused: uploads,
			check: func(w *world, _ answer, _ map[string]string) { w.uploads() }},
		"delete-image":         {status: 200, path: at("id", (*world).newImage), check: gone},
		"delete-image-doubled": {status: 200, path: at("id", (*world).newImageID), check: gone},
		"list-rootfs": {status: 200, check: func(w *world, _ answer, _ map[string]string) {
			name := w.newImage()
			for _, path := range []string{"/api/rootfs", "/api/v1/rootfs"} {
				if a := w.send(call{method: "GET", path: path, key: w.target.Key}); strings.Count(a.body, `"`+name+`"`) != 2 {
					w.t.Errorf("%q beside data and in it: %s", name, a)
				}
			}
		}},
		"delete-rootfs": {status: 200, path: at("name", (*world).newImage), refused: []refusal{
			{why: "the server's own", path: at("name", func(*world) string { return "default" }), status: 403, says: "protected"},
		}},
		"build-rootfs": {special: (*world).builds},
	}
}

// uploads: what an image is run with comes with it; a name is taken until it is given up.
func (w *world) uploads() {
	config, err := json.Marshal(object{"env": []string{"A=1"}, "cmd": []string{"app"}})
	w.must(err)
	c := call{method: "POST", path: "/api/v1/images/upload", raw: w.tree(), key: w.target.Key, query: "image_name=" + w.unique("image"),
		header: map[string]string{"X-Vers-Image-Config": base64.StdEncoding.EncodeToString(config)}}
	a := w.send(c)
	if a.status != 201 {
		w.t.Fatal(a)
	}
	if got := w.do("GET", "/images/"+a.text(w.t, "image_name"), nil); !strings.Contains(got.body, `"A=1"`) {
		w.t.Error(got)
	}
	if a := w.send(c); !a.isError(409) || a.header.Get("X-Should-Retry") != "false" {
		w.t.Errorf("the name again: %s", a)
	}
	c.header = map[string]string{"X-Vers-Image-Config": "no base64"}
	if a := w.send(c); !a.isError(400) {
		w.t.Error(a)
	}
}

// builds a folder in both places, with both forms of the answer, and what is wrong with builds.
func (w *world) builds() {
	const path = "/api/v1/rootfs/"
	good := map[string]string{"Dockerfile": "FROM scratch\nCOPY app /app\nENV A=1\n", "app": "hello"}
	folder := w.archive(good)
	for _, root := range []string{path, "/api/rootfs/", "//api/v1//rootfs/"} {
		name := w.unique("built")
		a := w.send(call{method: "PUT", path: root + name, raw: folder, key: w.target.Key, contentType: "application/x-tar"})
		if a.status != 200 || a.text(w.t, "rootfs_name") != name || !strings.Contains(a.body, `"data":{"rootfs_name":"`+name+`"}`) {
			w.t.Fatal(a)
		}
		if again := w.send(call{method: "PUT", path: root + name, raw: folder, key: w.target.Key}); again.status != 200 {
			w.t.Errorf("built anew: %s", again)
		}
		if a := w.send(call{method: "GET", path: "/api/v1/images/" + name, key: w.target.OtherKey}); !a.isError(404) {
			w.t.Errorf("another organisation sees it: %s", a)
		}
	}
	lines := w.send(call{method: "PUT", path: path + w.unique("built"), raw: folder, key: w.target.Key, header: map[string]string{"Accept": "application/x-ndjson"}})
	if last := lines.body[strings.LastIndex(strings.TrimSpace(lines.body), "\n")+1:]; lines.status != 200 || !strings.Contains(lines.body, `{"type":"log"`) || !strings.Contains(last, `"type":"result"`) {
		w.t.Error(lines)
	}
	failing := w.archive(map[string]string{"Dockerfile": "FROM scratch\nCOPY missing /\n"})
	if a := w.send(call{method: "PUT", path: path + w.unique("built"), raw: failing, key: w.target.Key, header: map[string]string{"Accept": "application/x-ndjson"}}); a.status != 200 || !strings.Contains(a.body, `"type":"error","status":400`) {
		w.t.Error(a)
	}
	for why, r := range map[string]struct {
		name, query, raw, key string
		status                int
	}{
		"a failing build":        {w.unique("built"), "", failing, w.target.Key, 400},
		"another Dockerfile":     {w.unique("built"), "dockerfile=docker/Dockerfile", folder, w.target.Key, 400},
		"a Dockerfile outside":   {w.unique("built"), "dockerfile=../../etc/passwd", folder, w.target.Key, 400},
		"no archive":             {w.unique("built"), "", strings.Repeat("x", 1024), w.target.Key, 400},
		"nothing":                {w.unique("built"), "", "", w.target.Key, 400},
		"a build argument alone": {w.unique("built"), "build_arg=A", folder, w.target.Key, 400},
		"the server's own name":  {"default", "", folder, w.target.Key, 400},
		"no name":                {"a%20b", "", folder, w.target.Key, 400},
		"no key":                 {w.unique("built"), "", folder, "", 401},
	} {
		if a := w.send(call{method: "PUT", path: path + r.name, query: r.query, raw: r.raw, key: r.key}); !a.isError(r.status) {
			w.t.Errorf("%s: want %d: %s", why, r.status, a)
		}
		if a := w.send(call{method: "GET", path: "/api/v1/images/" + r.name, key: w.target.Key}); r.name != "default" && a.status < 400 {
			w.t.Errorf("%s: an image appeared: %s", why, a)
		}
	}
}
