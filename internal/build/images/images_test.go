package images_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"vers/internal/build/engine"
	"vers/internal/build/engine/fake"
	"vers/internal/build/images"
	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/machine"
	"vers/internal/machine/machinetest"
	"vers/internal/rootfs"
)

// rig is a service on the machines of fake, with an engine in memory.
type rig struct {
	*machinetest.Rig
	t       *testing.T
	ctx     context.Context
	engine  *fake.Engine
	engines images.Engines // nil: engine is everybody's
	service *images.Service
	options images.Options
	quota   *int64 // MiB
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, engine: fake.New()}
	var cancel context.CancelFunc
	r.ctx, cancel = context.WithTimeout(context.Background(), machinetest.Patience)
	t.Cleanup(cancel)
	r.Rig = machinetest.New(t, machinetest.Options{Quotas: func(context.Context, string) (catalog.Quotas, error) {
		return catalog.Quotas{StorageMiB: r.quota}, nil
	}})
	r.open()
	t.Cleanup(func() { r.service.Close() })
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) open() {
	r.t.Helper()
	o := r.options
	o.DataDir, o.Catalog, o.Commits, o.Engines, o.Logger = r.Dir, r.Catalog, r.Commits, r.engines, slog.New(slog.DiscardHandler)
	if o.Engines == nil {
		o.Engines = one{r.engine}
	}
	o.Reserve = r.Manager.ReserveStorage
	if o.Write == nil {
		o.Write = writeAll
	}
	var err error
	r.service, err = images.Open(r.ctx, o)
	r.must(err)
}

// one gives every organisation the same engine.
type one struct{ engine *fake.Engine }

func (o one) Engine(context.Context, string) (engine.Engine, error) { return o.engine, nil }
func (o one) Sweep(ctx context.Context) error                       { return o.engine.Sweep(ctx) }

// writeAll keeps the archive as the file system.
func writeAll(_ context.Context, archive io.Reader, path string, _ rootfs.Options) (rootfs.Result, error) {
	data, err := io.ReadAll(archive)
	if err != nil {
		return rootfs.Result{}, err
	}
	size := int64(len(data)+1<<20) &^ (1<<20 - 1)
	if err := errors.Join(os.WriteFile(path, data, 0o600), os.Truncate(path, size)); err != nil {
		return rootfs.Result{}, err
	}
	return rootfs.Result{SizeBytes: size, Tree: fmt.Sprintf("%x", sha256.Sum256(data))}, nil
}

func (r *rig) request(name string) images.Request {
	return images.Request{OrgID: r.Acme.OrgID, KeyID: r.Acme.KeyID, Name: name, Replace: true}
}

type entry struct {
	name, text string
	kind       byte
}

func archive(t testing.TB, entries ...entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o644, ModTime: time.Unix(1000, 0)}
		switch e.kind {
		case 0, tar.TypeReg:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.text))
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname, e.text = e.text, ""
		case tar.TypeDir:
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.text); err != nil && h.Size > 0 {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// app is the folder of a small application.
func app(t testing.TB, more ...entry) *bytes.Buffer {
	return archive(t, append([]entry{{name: "Dockerfile", text: "FROM base:1\nCOPY app /srv/\nENV A=1\nWORKDIR /srv\nCMD [\"app\", \"-x\"]\n"}, {name: "app", text: "hello"}}, more...)...)
}

// left lists what a making has left that is no image.
func (r *rig) left() (names []string) {
	r.t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.Dir, "builds"))
	r.must(err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// nothingLeft waits for what is removed after an answer. A failure is told when nothing is left of it.
func (r *rig) nothingLeft() {
	r.t.Helper()
	machinetest.Await(r.t, "the end of what builds leave", func() bool { return len(r.left()) == 0 })
	if n := r.engine.Running(); n != 0 {
		r.t.Errorf("%d builds go on", n)
	}
}

func (r *rig) exists(file string) bool {
	_, err := os.Stat(filepath.Join(r.Dir, "images", file))
	return err == nil
}

func (r *rig) collect() {
	r.t.Helper()
	machinetest.Await(r.t, "a collection", func() bool {
		done, err := r.Commits.Collect(r.ctx)
		r.must(err)
		return done
	})
}

func (r *rig) wantKind(err error, kind fault.Kind, says string) {
	r.t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(fmt.Sprint(err), says) {
		r.t.Errorf("got %v (%v), want %v with %q", err, fault.KindOf(err), kind, says)
	}
}

// A folder becomes an image that VMs start from, with what its Dockerfile says about its processes, and the log tells.
func TestBuild(t *testing.T) {
	r := newRig(t)
	var log strings.Builder
	req := r.request("app")
	req.Log = &log
	img, err := r.service.Build(r.ctx, req, images.Dockerfile{}, app(t))
	r.must(err)
	config, err := img.ParseConfig()
	r.must(err)
	if config == nil || config.WorkingDir != "/srv" || strings.Join(config.Cmd, " ") != "app -x" || img.SourceType != "dockerfile" || img.OwnerID != r.Acme.KeyID {
		t.Errorf("image %+v with %+v", img, config)
	}
	if !strings.Contains(log.String(), "STEP COPY app /srv/") {
		t.Errorf("log: %s", log.String())
	}
	info, err := os.Stat(filepath.Join(r.Dir, "images", img.File))
	r.must(err)
	if info.Mode().Perm() != 0o444 || info.Size() != img.SizeMiB<<20 {
		t.Errorf("file of mode %v and %d bytes", info.Mode(), info.Size())
	}
	job, now, err := r.service.Status(r.ctx, r.Acme.OrgID, "app")
	if err != nil || job.State != catalog.ImageReady || now == nil || now.ID != img.ID {
		t.Errorf("status %+v %v %v", job, now, err)
	}
	if _, _, err := r.service.Status(r.ctx, r.Other.OrgID, "app"); !fault.Is(err, fault.NotFound) {
		t.Errorf("another organisation sees it: %v", err)
	}
	used, err := r.Commits.Stored(r.ctx, r.Acme.OrgID)
	if err != nil || used == 0 {
		t.Errorf("%d bytes count, %v", used, err)
	}
	r.nothingLeft()
}

// The same tree again changes nothing; another one gets another file, and what stands on the old one keeps that.
func TestBuildAgain(t *testing.T) {
	r := newRig(t)
	first, err := r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, app(t))
	r.must(err)
	same, err := r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, app(t))
	r.must(err)
	if same.ID != first.ID || same.File != first.File || same.Digest != first.Digest || !r.exists(first.File) {
		t.Errorf("the same image of the engine: %+v, before %+v", same, first)
	}
	labelled, err := r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, app(t, entry{name: "Dockerfile", text: "FROM base:1\nCOPY app /srv/\nWORKDIR /srv\nENV A=2\n"}))
	r.must(err)
	if config, err := labelled.ParseConfig(); err != nil || labelled.File != first.File || config == nil || config.Env[len(config.Env)-1] != "A=2" {
		t.Errorf("the same tree, run in another way: %+v with %+v, before %+v", labelled, config, first)
	}
	vm, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: catalog.VMConfig{MemSizeMiB: 128, VCPUCount: 1, FSSizeMiB: 64, ImageName: "app"}, WaitBoot: true})
	r.must(err)
	second, err := r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, app(t, entry{name: "app", text: "changed"}))
	r.must(err)
	if second.ID != first.ID || second.File == first.File {
		t.Errorf("another tree: %+v, before %+v", second, first)
	}
	r.collect()
	if !r.exists(first.File) || !r.exists(second.File) {
		t.Error("a file that is needed is gone")
	}
	if vm.Config.Image == nil || vm.Config.Image.WorkingDir != "/srv" {
		t.Errorf("the VM's configuration: %+v", vm.Config)
	}
	commit, _, err := r.Manager.Commit(r.ctx, r.Acme, vm.ID, machine.CommitRequest{})
	r.must(err)
	r.must(r.Manager.Delete(r.ctx, r.Acme, vm.ID, false))
	r.collect()
	if !r.exists(first.File) {
		t.Error("the file that a commit stands on is gone")
	}
	r.must(r.Manager.DeleteCommit(r.ctx, r.Acme, commit.ID))
	r.collect() // the template of the old tree goes with it
	if r.exists(first.File) {
		t.Error("a file that nobody needs stays")
	}
	files, err := r.Catalog.ImageFiles(r.ctx)
	if err != nil || len(files) != 1 || files[0].Name != second.File {
		t.Errorf("files %+v, %v", files, err)
	}
}

// What goes wrong is told, recorded, and leaves nothing; the next build works.
func TestFailures(t *testing.T) {
	r := newRig(t)
	small, zero := int64(1), int64(0)
	for name, c := range map[string]struct {
		folder io.Reader
		d      images.Dockerfile
		kind   fault.Kind
		says   string
		quota  *int64
	}{
		"step":        {folder: archive(t, entry{name: "Dockerfile", text: "FROM base:1\nRUN exit 3"}), kind: fault.Invalid, says: "RUN exit 3' (line 2) failed: exit code 3"},
		"no base":     {folder: archive(t, entry{name: "Dockerfile", text: "FROM nowhere:1"}), kind: fault.NotFound, says: "nowhere:1"},
		"no file":     {folder: app(t), d: images.Dockerfile{Path: "docker/Dockerfile.prod"}, kind: fault.Invalid, says: "docker/Dockerfile.prod' not found"},
		"outside":     {folder: app(t), d: images.Dockerfile{Path: "../Dockerfile"}, kind: fault.Invalid, says: "not below"},
		"absolute":    {folder: app(t), d: images.Dockerfile{Path: "/etc/passwd"}, kind: fault.Invalid, says: "not below"},
		"link out":    {folder: archive(t, entry{name: "Dockerfile", text: "/etc/passwd", kind: tar.TypeSymlink}), kind: fault.Invalid, says: "not found"},
		"no archive":  {folder: strings.NewReader(strings.Repeat("x", 2000)), kind: fault.Invalid, says: "archive cannot be read"},
		"cut archive": {folder: io.LimitReader(app(t), 540), kind: fault.Invalid, says: "archive cannot be read"},
		"a device":    {folder: app(t, entry{name: "null", kind: tar.TypeChar}), kind: fault.Invalid, says: "null"},
		"full":        {folder: app(t, entry{name: "big", text: strings.Repeat("x", 3<<20)}), kind: fault.Exhausted, says: "stored commits and images", quota: &zero},
		"too large":   {folder: archive(t, entry{name: "Dockerfile", text: "FROM base:1\nCOPY big /"}, entry{name: "big", text: strings.Repeat("x", 3<<20)}), kind: fault.Exhausted, says: "stored commits and images", quota: &small},
	} {
		t.Run(name, func(t *testing.T) {
			defer func(before *rig) { *r = *before }(&rig{Rig: r.Rig, t: r.t, ctx: r.ctx, engine: r.engine, service: r.service, options: r.options})
			r.t, r.quota = t, c.quota
			_, err := r.service.Build(r.ctx, r.request("app"), c.d, c.folder)
			r.wantKind(err, c.kind, c.says)
			if names := r.left(); len(names) != 0 {
				t.Errorf("left behind: %q", names)
			}
			if _, err := r.Catalog.OwnImage(r.ctx, r.Acme.OrgID, "app"); !fault.Is(err, fault.NotFound) {
				t.Errorf("an image appeared: %v", err)
			}
		})
	}
	job, now, err := r.service.Status(r.ctx, r.Acme.OrgID, "app")
	if err != nil || job.State != catalog.ImageFailed || job.Reason == "" || now != nil {
		t.Errorf("status %+v %v %v", job, now, err)
	}
	_, err = r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, app(t))
	r.must(err)
	for _, name := range []string{"default", "", "../x", "a/b", strings.Repeat("x", 65)} {
		_, err := r.service.Build(r.ctx, r.request(name), images.Dockerfile{}, app(t))
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

// The limit counts upload and build together.
func TestLimit(t *testing.T) {
	r := newRig(t)
	r.service.Close()
	r.options.Limit = 50 * time.Millisecond
	r.open()
	_, err := r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, archive(t, entry{name: "Dockerfile", text: "FROM base:1\nRUN hang"}))
	r.wantKind(err, fault.Timeout, "was not made within 50ms, the limit for upload and build together")
	r.nothingLeft()
	slow := &slowReader{app(t)}
	_, err = r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, slow)
	r.wantKind(err, fault.Timeout, "was not made within 50ms")
	r.nothingLeft()
}

// slowReader is a client that sends a byte every ten milliseconds.
type slowReader struct{ r io.Reader }

func (s *slowReader) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	return s.r.Read(p[:1])
}

// A client that goes away ends its build; so does versd, and the next one finds nothing but the record of the failure.
func TestInterrupted(t *testing.T) {
	r := newRig(t)
	hangs := func() *bytes.Buffer {
		return archive(t, entry{name: "Dockerfile", text: "FROM base:1\nRUN hang"})
	}
	reached := make(chan struct{}, 1)
	r.engine.SetHook(func(_ context.Context, step string) error {
		if step == "RUN hang" {
			reached <- struct{}{}
		}
		return nil
	})
	ctx, cancel := context.WithCancel(r.ctx)
	go func() {
		<-reached
		cancel()
	}()
	_, err := r.service.Build(ctx, r.request("app"), images.Dockerfile{}, hangs())
	r.wantKind(err, fault.Unavailable, "client went away")
	r.nothingLeft()

	done := make(chan error, 1)
	go func() {
		_, err := r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, hangs())
		done <- err
	}()
	<-reached
	_, err = r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, app(t))
	r.wantKind(err, fault.Conflict, "being made right now")
	_, err = r.service.Delete(r.ctx, r.Acme.OrgID, "app")
	r.wantKind(err, fault.NotFound, "app")
	r.service.Close()
	r.wantKind(<-done, fault.Unavailable, "versd stops")
	r.nothingLeft()
	_, err = r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, app(t))
	r.wantKind(err, fault.Unavailable, "versd stops")
}

// After kill -9 the start removes what was half made, and the jobs that ran have failed.
func TestKilled(t *testing.T) {
	r := newRig(t)
	r.service.Close()
	r.must(r.Catalog.PutImageJob(r.ctx, catalog.ImageJob{ID: "j", OrgID: r.Acme.OrgID, Name: "app", State: catalog.ImageBuilding, CreatedAt: time.Now()}))
	r.must(os.MkdirAll(filepath.Join(r.Dir, "builds", "j", "folder"), 0o700))
	r.must(os.WriteFile(filepath.Join(r.Dir, "builds", "j", "rootfs.ext4"), []byte("half"), 0o600))
	r.must(os.WriteFile(filepath.Join(r.Dir, "images", commit.ImageFile("0f0e0d0c-0b0a-4908-8706-050403020100")), []byte("renamed, not named"), 0o600))
	r.open()
	r.collect()
	r.nothingLeft()
	if r.exists(commit.ImageFile("0f0e0d0c-0b0a-4908-8706-050403020100")) || !r.exists(defaultFile(r)) {
		t.Error("files after the start")
	}
	job, _, err := r.service.Status(r.ctx, r.Acme.OrgID, "app")
	if err != nil || job.State != catalog.ImageFailed || !strings.Contains(job.Reason, "versd ended") {
		t.Errorf("job %+v, %v", job, err)
	}
	if r.engine.Sweeps() != 2 {
		t.Errorf("%d sweeps of the engine", r.engine.Sweeps())
	}
}

func defaultFile(r *rig) string {
	img, err := r.Catalog.Image(r.ctx, "", "default")
	r.must(err)
	return img.File
}

// packers compress archives, as uploads may be.
var packers = map[string]func(*testing.T, []byte) *bytes.Buffer{
	"plain": func(_ *testing.T, data []byte) *bytes.Buffer { return bytes.NewBuffer(slices.Clone(data)) },
	"gzip": func(t *testing.T, data []byte) *bytes.Buffer {
		var b bytes.Buffer
		return compressed(t, &b, gzip.NewWriter(&b), data)
	},
	"zstd": func(t *testing.T, data []byte) *bytes.Buffer {
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		return compressed(t, &b, z, data)
	},
}

func compressed(t *testing.T, b *bytes.Buffer, w io.WriteCloser, data []byte) *bytes.Buffer {
	t.Helper()
	_, err := w.Write(data)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

// Uploads: a root file system and a folder with a Dockerfile, also compressed.
func TestUpload(t *testing.T) {
	r := newRig(t)
	tree := archive(t, entry{name: "etc/os-release", text: "ID=x"}, entry{name: "usr/share/Dockerfile", text: "no"}).Bytes()
	config := catalog.ImageConfig{Env: []string{"B=2"}}
	plain, err := r.service.Upload(r.ctx, r.request("plain"), config, bytes.NewReader(tree))
	r.must(err)
	folder, err := io.ReadAll(app(t))
	r.must(err)
	for name, pack := range packers {
		small, err := r.service.Upload(r.ctx, r.request("packed-"+name), config, pack(t, tree))
		r.must(err)
		if got, _ := plain.ParseConfig(); plain.Digest != small.Digest || plain.SourceType != "upload" || got == nil || got.Env[0] != "B=2" {
			t.Errorf("%s: %+v and %+v", name, plain, small)
		}
		built, err := r.service.Upload(r.ctx, r.request("built-"+name), catalog.ImageConfig{}, pack(t, folder))
		r.must(err)
		if built.SourceType != "dockerfile" {
			t.Errorf("%s: %+v", name, built)
		}
		damaged := pack(t, tree)
		damaged.Truncate(damaged.Len() / 2)
		_, err = r.service.Upload(r.ctx, r.request("damaged-"+name), config, damaged)
		r.wantKind(err, fault.Invalid, "archive")
	}
	_, err = r.service.Upload(r.ctx, r.request("bzip2"), config, strings.NewReader("BZh91AY&SY"))
	r.wantKind(err, fault.Invalid, "bzip2")
	// Root file systems of images that were built in themselves have one too; nobody wants those built again.
	req := r.request("root")
	req.RootFS = true
	withDockerfile := archive(t, entry{name: "etc/os-release", text: "ID=x"}, entry{name: "Dockerfile", text: "FROM nobody\n"})
	if root, err := r.service.Upload(r.ctx, req, config, withDockerfile); err != nil || root.SourceType != "upload" {
		t.Errorf("a root file system with a Dockerfile: %+v, %v", root, err)
	}
	req = r.request("plain")
	req.Replace = false
	_, err = r.service.Upload(r.ctx, req, config, bytes.NewReader(tree))
	r.wantKind(err, fault.Conflict, "already exists")
	req = r.request("large")
	req.SizeMiB = 700
	large, err := r.service.Upload(r.ctx, req, config, bytes.NewReader(tree))
	if err != nil || large.SizeMiB != 700 {
		t.Errorf("%+v, %v", large, err)
	}
	r.nothingLeft()
}

// Files that an upload wants to keep are not made those of a machine.
func TestUploadKeeps(t *testing.T) {
	r := newRig(t)
	r.service.Close()
	r.options.Write = rootfs.Write
	r.open()
	tree := archive(t, entry{name: "etc/resolv.conf", text: "nameserver 9.9.9.9\n"}, entry{name: "etc/hostname", text: "mine\n"}).Bytes()
	for _, keep := range []bool{false, true} {
		req := r.request("kept")
		want := map[string]string{"etc/resolv.conf": "nameserver 10.77.0.1\n", "etc/hostname": "vers\n"}
		if keep {
			req.Keep = []string{"/etc/resolv.conf", "/etc/hostname"}
			want = map[string]string{"etc/resolv.conf": "nameserver 9.9.9.9\n", "etc/hostname": "mine\n"}
		}
		img, err := r.service.Upload(r.ctx, req, catalog.ImageConfig{}, bytes.NewReader(tree))
		r.must(err)
		for name, text := range want {
			out, err := exec.CommandContext(r.ctx, "/usr/sbin/debugfs", "-R", "cat "+name, filepath.Join(r.Dir, "images", img.File)).Output()
			if err != nil || string(out) != text {
				t.Errorf("keep %v: %s is %q, %v", keep, name, out, err)
			}
		}
	}
}

// An image of a registry is made in the background.
func TestCreate(t *testing.T) {
	r := newRig(t)
	job, err := r.service.Create(r.ctx, r.request("base"), engine.Reference{Name: "base:1"})
	if err != nil || job.State != catalog.ImagePending {
		t.Fatal(job, err)
	}
	ended := func(name string) catalog.ImageJob {
		var job catalog.ImageJob
		machinetest.Await(t, "the end of "+name, func() bool {
			job, _, err = r.service.Status(r.ctx, r.Acme.OrgID, name)
			r.must(err)
			return job.EndedAt != nil
		})
		return job
	}
	if job := ended("base"); job.State != catalog.ImageReady {
		t.Errorf("%+v", job)
	}
	_, err = r.service.Create(r.ctx, r.request("gone"), engine.Reference{Name: "nowhere:1"})
	r.must(err)
	if job := ended("gone"); job.State != catalog.ImageFailed || !strings.Contains(job.Reason, "nowhere:1") {
		t.Errorf("%+v", job)
	}
	r.nothingLeft()
}

// Who stands on an image keeps it; the server's images are nobody's to delete.
func TestDelete(t *testing.T) {
	r := newRig(t)
	img, err := r.service.Build(r.ctx, r.request("app"), images.Dockerfile{}, app(t))
	r.must(err)
	vm, err := r.Manager.Run(r.ctx, r.Acme, machine.RunRequest{Config: catalog.VMConfig{MemSizeMiB: 128, VCPUCount: 1, FSSizeMiB: 64, ImageName: "app"}, WaitBoot: true})
	r.must(err)
	_, err = r.service.Delete(r.ctx, r.Acme.OrgID, "app")
	r.wantKind(err, fault.Conflict, "in use by 1 VMs")
	_, err = r.service.Delete(r.ctx, r.Other.OrgID, img.ID)
	r.wantKind(err, fault.NotFound, "not found")
	_, err = r.service.Delete(r.ctx, r.Acme.OrgID, "default")
	r.wantKind(err, fault.Forbidden, "protected")
	r.must(r.Manager.Delete(r.ctx, r.Acme, vm.ID, false))
	_, err = r.service.Delete(r.ctx, r.Acme.OrgID, img.ID)
	r.must(err)
	_, _, err = r.service.Status(r.ctx, r.Acme.OrgID, "app")
	r.wantKind(err, fault.NotFound, "app")
	r.collect()
	if used, err := r.Commits.Stored(r.ctx, r.Acme.OrgID); err != nil || used != 0 || r.exists(img.File) {
		t.Errorf("%d bytes count, the file exists: %v, %v", used, r.exists(img.File), err)
	}
}
