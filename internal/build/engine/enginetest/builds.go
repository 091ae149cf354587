package enginetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

func (s *suite) loadResolveExport(t *testing.T) {
	found, err := s.Engine.Resolve(soon(t), engine.Reference{Name: baseName, Pull: engine.PullNever})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.base, found); diff != "" || found.ID == "" || !strings.HasPrefix(found.Digest, "sha256:") {
		t.Errorf("loaded and found: %s\n%+v", diff, found)
	}
	if diff := cmp.Diff([]string{"/bin/sh"}, found.Config.Cmd); diff != "" || found.Config.Labels["made.by"] != "test" {
		t.Errorf("configuration: %s %+v", diff, found.Config)
	}
	tree := s.tree(t, found)
	want := readTree(t, bytes.NewReader(Base(t)))
	for path, entry := range want {
		got, ok := tree[path]
		switch {
		case !ok:
			if !slices.Contains([]string{"/dev", "/proc", "/sys"}, path) { // engines put their own there
				t.Errorf("%s is missing", path)
			}
		case got.header.Typeflag != entry.header.Typeflag, got.header.Mode&0o7777 != entry.header.Mode && entry.header.Typeflag != tar.TypeSymlink,
			got.header.Linkname != entry.header.Linkname, !got.header.ModTime.Equal(entry.header.ModTime) && entry.header.Typeflag != tar.TypeDir, got.content != entry.content:
			t.Errorf("%s: %+v, want %+v", path, got.header, entry.header)
		}
	}
	if _, err := s.Engine.Resolve(soon(t), engine.Reference{Name: "vers-test/nothing:1", Pull: engine.PullNever}); !fault.Is(err, fault.NotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
	if _, err := s.Engine.Resolve(soon(t), engine.Reference{Name: "No Name", Pull: engine.PullNever}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no name of an image: %v", err)
	}
	if err := s.Engine.Export(soon(t), engine.Image{ID: strings.Repeat("0", 64)}, &bytes.Buffer{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("export of nothing: %v", err)
	}
	if _, err := s.Engine.Load(soon(t), "vers-test/bad:1", strings.NewReader("no archive"), engine.Config{}); err == nil {
		t.Error("something that is no archive became an image")
	}
}

// names: an image is found by every spelling of the name that it was loaded with, and no registry is asked for it.
func (s *suite) names(t *testing.T) {
	for loaded, spellings := range map[string][]string{
		"docker.io/library/vers-whole:1": {"vers-whole:1", "library/vers-whole:1", "docker.io/vers-whole:1", "docker.io/library/vers-whole:1"},
		"vers-short":                     {"vers-short", "vers-short:latest", "docker.io/library/vers-short"},
		"vers-test/two:1":                {"vers-test/two:1", "docker.io/vers-test/two:1"},
		"quay.example/vers/other:1":      {"quay.example/vers/other:1"},
		"localhost/vers-own:1":           {"localhost/vers-own:1"},
	} {
		image, err := s.Engine.Load(soon(t), loaded, bytes.NewReader(Base(t)), engine.Config{Env: []string{"PATH=/bin"}, Labels: map[string]string{"name": loaded}})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range spellings {
			if found, err := s.Engine.Resolve(soon(t), engine.Reference{Name: name}); err != nil || found.ID != image.ID {
				t.Errorf("loaded as %s, looked for as %s: %+v, %v", loaded, name, found, err)
			}
			built, log, err := s.run(soon(t), t, "FROM "+name+"\nLABEL built=yes\n", nil)
			if err != nil || built.Config.Labels["name"] != loaded {
				t.Errorf("loaded as %s, built from %s: %v, %v\n%s", loaded, name, built.Config.Labels, err, log)
			}
		}
	}
	if _, err := s.Engine.Resolve(soon(t), engine.Reference{Name: "quay.example/vers-whole:1", Pull: engine.PullNever}); !fault.Is(err, fault.NotFound) {
		t.Errorf("the same name of another registry: %v", err)
	}
}

func (s *suite) config(t *testing.T) {
	image, _ := s.build(t, `FROM `+baseName+`
ARG VERSION=0
ENV APP=/srv MODE="a b" VERSION=$VERSION
WORKDIR /srv/app
EXPOSE 8080 53/udp
LABEL made.by=dockerfile other=1
USER user:staff
ENTRYPOINT ["/bin/server", "--x"]
CMD ["serve"]
RUN id -un > /tmp/who && pwd > /tmp/where && echo $VERSION $BASE > /tmp/what
`, func(b *engine.Build) { b.Args = map[string]string{"VERSION": "7"} })
	want := engine.Config{
		Env: []string{"APP=/srv", "BASE=yes", "MODE=a b", "PATH=/bin", "VERSION=7"}, WorkingDir: "/srv/app", User: "user:staff",
		Entrypoint: []string{"/bin/server", "--x"}, Cmd: []string{"serve"}, ExposedPorts: []string{"53/udp", "8080/tcp"},
	}
	got := image.Config
	labels := got.Labels
	got.Env, got.Labels = slices.Sorted(slices.Values(got.Env)), nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if labels["made.by"] != "dockerfile" || labels["other"] != "1" {
		t.Errorf("labels: %v", labels)
	}
	tree := s.tree(t, image)
	expect(t, tree, "/tmp/who", "user\n")
	expect(t, tree, "/tmp/where", "/srv/app\n")
	expect(t, tree, "/tmp/what", "7 yes\n")
	image, _ = s.build(t, "FROM "+baseName+"\nWORKDIR /srv/late\n", nil)
	if h := s.tree(t, image)["/srv/late"].header; h == nil || h.Typeflag != tar.TypeDir || h.Mode&0o7777 != 0o755 {
		t.Errorf("WORKDIR that no step ran in: %+v", h)
	}
}

func (s *suite) stages(t *testing.T) {
	dockerfile := `ARG BASE=vers-test/nothing:1
FROM $BASE AS first
RUN echo one > /one && echo secret > /secret
FROM first AS second
RUN cat /one > /two && echo two >> /two
FROM ` + baseName + `
COPY --from=first /one /copied/
COPY --from=1 --chown=1000:50 /two /copied/two
COPY --from=` + baseName + ` /etc/group /copied/group
`
	arg := func(b *engine.Build) { b.Args = map[string]string{"BASE": baseName} }
	image, _ := s.build(t, dockerfile, arg)
	tree := s.tree(t, image)
	expect(t, tree, "/copied/one", "one\n")
	expect(t, tree, "/copied/two", "one\ntwo\n")
	absent(t, tree, "/secret")
	if h := tree["/copied/two"].header; h != nil && (h.Uid != 1000 || h.Gid != 50) {
		t.Errorf("--chown: %d:%d", h.Uid, h.Gid)
	}
	image, _ = s.build(t, dockerfile, func(b *engine.Build) { arg(b); b.Target = "first" })
	tree = s.tree(t, image)
	expect(t, tree, "/secret", "secret\n")
	absent(t, tree, "/two")
	if _, _, err := s.run(soon(t), t, dockerfile, func(b *engine.Build) { arg(b); b.Target = "third" }); !fault.Is(err, fault.Invalid) {
		t.Errorf("a stage that is not there: %v", err)
	}
	if _, _, err := s.run(soon(t), t, dockerfile, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("a base that is not there: %v", err)
	}
}

func (s *suite) language(t *testing.T) {
	if s.capabilities.Heredocs {
		image, _ := s.build(t, `FROM `+baseName+`
RUN <<EOF
set -e
echo first > /lines
echo second >> /lines
EOF
COPY <<EOF /etc/motd
hello
EOF
`, nil)
		tree := s.tree(t, image)
		expect(t, tree, "/lines", "first\nsecond\n")
		expect(t, tree, "/etc/motd", "hello\n")
	}
	if s.capabilities.CacheMount {
		for _, want := range []string{"1\n", "2\n"} {
			image, _ := s.build(t, `FROM `+baseName+`
RUN --mount=type=cache,target=/cache echo x >> /cache/log; wc -l < /cache/log > /count
`, func(b *engine.Build) { b.NoCache = true })
			tree := s.tree(t, image)
			expect(t, tree, "/count", want)
			absent(t, tree, "/cache/log")
		}
	}
	image, _ := s.build(t, `FROM `+baseName+`
SHELL ["/bin/sh", "-e", "-c"]
RUN false || true
VOLUME /data
HEALTHCHECK CMD true
STOPSIGNAL SIGINT
RUN ["/bin/touch", "/exec form"]
`, nil)
	expect(t, s.tree(t, image), "/exec form", "")
}

// files: .dockerignore, and what the kernel knows about files beside their content.
func (s *suite) files(t *testing.T) {
	dir := write(t, map[string]string{
		"docker/Dockerfile": "FROM " + baseName + "\nCOPY . /ctx/\n" +
			"RUN ln /ctx/keep /ctx/hard && mkdir -m 1777 /ctx/sticky && mkfifo /ctx/fifo && chmod 4755 /ctx/.hidden && chown 1234:5678 /ctx/keep\n",
		".dockerignore": "# no secrets\n*.log\nsecret\n!important.log\n", "keep": "k", ".hidden": "h", "a.log": "x", "important.log": "i",
		"secret/key": "x", "sub/b.log": "stays",
	})
	if err := os.Symlink("keep", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "outside")); err != nil {
		t.Fatal(err)
	}
	image, log, err := s.run(soon(t), t, "", func(b *engine.Build) { b.Context, b.Dockerfile = dir, "docker/Dockerfile" })
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	tree := s.tree(t, image)
	expect(t, tree, "/ctx/important.log", "i")
	expect(t, tree, "/ctx/sub/b.log", "stays")
	for _, path := range []string{"/ctx/a.log", "/ctx/secret", "/ctx/secret/key"} {
		absent(t, tree, path)
	}
	for path, target := range map[string]string{"/ctx/link": "keep", "/ctx/outside": "/etc/passwd"} {
		if h := tree[path].header; h == nil || h.Linkname != target {
			t.Errorf("%s: %+v", path, h)
		}
	}
	keep, hard := tree["/ctx/keep"].header, tree["/ctx/hard"].header
	if keep == nil || hard == nil || (keep.Typeflag == tar.TypeLink) == (hard.Typeflag == tar.TypeLink) {
		t.Errorf("hard link: %+v %+v", keep, hard)
	} else if keep.Uid != 1234 || keep.Gid != 5678 || keep.Uname != "" {
		t.Errorf("owner: %+v", keep)
	}
	for path, want := range map[string]struct {
		kind byte
		mode int64
	}{"/ctx/sticky": {tar.TypeDir, 0o1777}, "/ctx/fifo": {tar.TypeFifo, 0o644}, "/ctx/.hidden": {tar.TypeReg, 0o4755}} {
		if h := tree[path].header; h == nil || h.Typeflag != want.kind || h.Mode&0o7777 != want.mode {
			t.Errorf("%s: %+v", path, h)
		}
	}
	s.attributes(t)
}

// attributes of files come in with an archive and must survive steps and export.
func (s *suite) attributes(t *testing.T) {
	const key = "SCHILY.xattr.security.capability"
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service=ep
	var buf bytes.Buffer
	buf.Write(bytes.TrimRight(Base(t), "\x00")) // without its end
	buf.Write(make([]byte, (512-buf.Len()%512)%512))
	w := tar.NewWriter(&buf)
	for name, records := range map[string]map[string]string{"server": {key: capability}, "plain": nil} {
		h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Format: tar.FormatPAX, Size: 2, PAXRecords: records}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte("#!"))
	}
	_ = w.Close()
	if _, err := s.Engine.Load(soon(t), "vers-test/attributes:1", &buf, engine.Config{Env: []string{"PATH=/bin"}}); err != nil {
		t.Fatal(err)
	}
	check := func(dockerfile string) {
		t.Helper()
		image, _ := s.build(t, dockerfile, nil)
		tree := s.tree(t, image)
		if got := tree["/server"].header; got == nil || got.PAXRecords[key] != capability {
			t.Errorf("capability of a file: %+v", got)
		}
		if got := tree["/plain"].header; got == nil || got.PAXRecords[key] != "" {
			t.Errorf("file without capability: %+v", got)
		}
	}
	check("FROM vers-test/attributes:1\nRUN touch /other\n")
	if s.capabilities.FileCapabilities {
		check("FROM " + baseName + "\nCOPY --from=vers-test/attributes:1 /server /plain /\nRUN touch /other\n")
	}
}

// cache: a second build runs no step, a changed file only those after it.
func (s *suite) cache(t *testing.T) {
	dir := write(t, map[string]string{"file": "1", "Dockerfile": "FROM " + baseName + "\nRUN cat /proc/sys/kernel/random/uuid > /early\n" +
		"COPY file /file\nRUN cat /proc/sys/kernel/random/uuid > /late\n"})
	build := func(noCache bool) (engine.Image, map[string]entry) {
		image, log, err := s.run(soon(t), t, "", func(b *engine.Build) { b.Context, b.NoCache = dir, noCache })
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		return image, s.tree(t, image)
	}
	first, tree := build(false)
	second, same := build(false)
	if first.Digest != second.Digest || tree["/late"].content != same["/late"].content {
		t.Errorf("nothing changed, but %s is not %s", second.Digest, first.Digest)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, changed := build(false)
	expect(t, changed, "/file", "2")
	if changed["/early"].content != tree["/early"].content || changed["/late"].content == tree["/late"].content {
		t.Error("a changed file: the step before it ran again, or the one after it did not")
	}
	if _, fresh := build(true); fresh["/early"].content == tree["/early"].content {
		t.Error("without cache a step did not run")
	}
}

func (s *suite) failures(t *testing.T) {
	_, log, err := s.run(soon(t), t, `# comment
FROM `+baseName+`
RUN echo fine

RUN echo before && \
    exit 7
RUN echo never
`, nil)
	var step *engine.StepError
	if !errors.As(err, &step) {
		t.Fatalf("%v\n%s", err, log)
	}
	if step.Code != 7 || step.Line != 5 && step.Line != 0 || !strings.Contains(step.Step, "exit 7") {
		t.Errorf("%+v", step)
	}
	if !strings.Contains(log, "before\n") || strings.Contains(log, "never\n") {
		t.Errorf("log:\n%s", log)
	}
	for name, test := range map[string]struct{ dockerfile, message string }{
		"unknown instruction": {"FROM " + baseName + "\nRAN true\n", "RAN"},
		"no such file":        {"FROM " + baseName + "\nCOPY missing /x\n", "missing"},
		"empty":               {"", ""},
		"no FROM":             {"RUN true\n", ""},
		"out of the context":  {"FROM " + baseName + "\nCOPY ../../../../etc/shadow /x\n", ""},
	} {
		if _, _, err := s.run(soon(t), t, test.dockerfile, nil); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), test.message) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := s.run(soon(t), t, "", func(b *engine.Build) { b.Dockerfile = "Missing" }); !fault.Is(err, fault.Invalid) {
		t.Errorf("no Dockerfile: %v", err)
	}
	dir := write(t, nil)
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "Dockerfile")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.run(soon(t), t, "", func(b *engine.Build) { b.Context = dir }); !fault.Is(err, fault.Invalid) {
		t.Errorf("a Dockerfile that is a link out of its folder: %v", err)
	}
}
