package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"vers/internal/build/engine"
	"vers/internal/build/engine/fake"
	"vers/internal/build/images"
	"vers/internal/build/inputs"
	"vers/internal/catalog"
	"vers/internal/fault"
)

// perOrg gives each organisation its own engine.
type perOrg map[string]*fake.Engine

func (p perOrg) Engine(_ context.Context, orgID string) (engine.Engine, error) { return p[orgID], nil }
func (p perOrg) Sweep(context.Context) error                                   { return nil }

// digestOf is what a client says of a folder.
func digestOf(t *testing.T, folder io.Reader) string {
	t.Helper()
	sum := inputs.New()
	for tape := tar.NewReader(folder); ; {
		h, err := tape.Next()
		if errors.Is(err, io.EOF) {
			return sum.String()
		}
		if err == nil {
			err = sum.WriteHeader(h)
		}
		if err == nil {
			_, err = io.Copy(sum, tape)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// upload is a folder that says whether it was read.
type upload struct {
	io.Reader
	read bool
}

func (u *upload) Read(p []byte) (int, error) {
	u.read = true
	return u.Reader.Read(p)
}

// A folder that was built before is not read, and nothing is built or written; whatever differs is built.
func TestKnownFolder(t *testing.T) {
	r := newRig(t)
	r.service.Close()
	others := fake.New()
	r.engines = perOrg{r.Acme.OrgID: r.engine, r.Other.OrgID: others}
	steps := 0
	count := func(context.Context, string) error { steps++; return nil }
	r.engine.SetHook(count)
	others.SetHook(count)
	r.open()
	req, d := r.request("app"), images.Dockerfile{}
	var folder []byte
	build := func(why string, sent, built bool) catalog.Image {
		t.Helper()
		var log strings.Builder
		req.Log, steps = &log, 0
		d.Folder = digestOf(t, bytes.NewReader(folder))
		body := &upload{Reader: bytes.NewReader(folder)}
		began := false
		req.Began = func() { began = true }
		img, err := r.service.Build(r.ctx, req, d, body)
		if err != nil {
			t.Fatalf("%s: %v", why, err)
		}
		stepped := strings.Contains(log.String(), "STEP")
		if body.read != sent || stepped != built || !began || built == strings.Contains(log.String(), "Nothing has changed since an earlier build") {
			t.Errorf("%s: read %v, want %v; built %v, want %v; log %s", why, body.read, sent, stepped, built, log.String())
		}
		return img
	}
	folder = app(t).Bytes()
	first := build("the first time", true, true)
	if again := build("nothing changed", false, false); again.File != first.File || again.ID != first.ID || steps != 0 {
		t.Errorf("nothing changed: %+v, before %+v, %d steps", again, first, steps)
	}
	const fresh, kept = true, false
	change := func(why string, changed bool) catalog.Image {
		t.Helper()
		img := build(why, true, true)
		if (img.File == first.File) == changed {
			t.Errorf("%s: file %s, first %s", why, img.File, first.File)
		}
		return img
	}
	folder = app(t, entry{name: "app", text: "other"}).Bytes()
	change("a file has other content", fresh)
	folder = app(t).Bytes()
	if back := build("as at first", false, false); back.Digest != first.Digest {
		t.Errorf("the first folder again: %+v, before %+v", back, first)
	} else {
		first = back // written again: another folder's image was in between
	}
	folder = app(t, entry{name: "Dockerfile", text: "FROM base:1\nCOPY app /srv/${A}\n"}).Bytes()
	change("a line of the Dockerfile", fresh)
	d.Args = map[string]string{"A": "b"}
	change("an argument", fresh)
	d.Args = nil
	folder = app(t).Bytes()
	first = build("as at first", false, false)
	d.NoCache = true
	change("without cache", kept)
	d.NoCache = false

	req.SizeMiB = 9
	if larger := build("a larger file system", false, false); larger.SizeMiB != 9 || larger.File == first.File {
		t.Errorf("%+v, before %+v", larger, first)
	}
	req.SizeMiB = 0
	first = build("its old size", false, false)
	req.Keep = []string{"/etc/hosts"}
	before := first
	if kept := build("with a file of its own", false, false); kept.Origin == before.Origin {
		t.Errorf("an image with another /etc/hosts passes for the same: %+v", kept)
	}
	req.Keep = nil
	first = build("as before", false, false)

	_, err := r.service.Delete(r.ctx, r.Acme.OrgID, "app")
	r.must(err)
	if remade := build("the image was deleted", false, false); remade.Digest != first.Digest || remade.ID == first.ID || !r.exists(remade.File) {
		t.Errorf("%+v, before %+v", remade, first)
	}
	r.engine.Forget()
	build("the engine has lost it", true, true)

	var base bytes.Buffer
	_, err = io.Copy(&base, archive(t, entry{name: "etc/os-release", text: "ID=new\n"}))
	r.must(err)
	_, err = r.engine.Load(r.ctx, "base:1", &base, engine.Config{})
	r.must(err)
	change("the base moved", fresh)

	req.OrgID, req.KeyID = r.Other.OrgID, r.Other.KeyID
	build("another organisation", true, true)
	d.Folder = "sha256:0"
	_, err = r.service.Build(r.ctx, req, d, app(t))
	r.wantKind(err, fault.Invalid, "64 hexadecimal digits")
	r.nothingLeft()
}

// What came counts, not what a client said of it.
func TestWrongDigest(t *testing.T) {
	r := newRig(t)
	said := digestOf(t, app(t, entry{name: "app", text: "said"}))
	_, err := r.service.Build(r.ctx, r.request("app"), images.Dockerfile{Folder: said}, app(t, entry{name: "app", text: "sent"}))
	r.must(err)
	body := &upload{Reader: app(t, entry{name: "app", text: "said"})}
	_, err = r.service.Build(r.ctx, r.request("app"), images.Dockerfile{Folder: said}, body)
	r.must(err)
	if !body.read {
		t.Error("a folder that never came is known")
	}
}
