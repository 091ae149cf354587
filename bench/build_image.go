package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"vers/internal/build/engine"
	"vers/internal/build/images"
	"vers/internal/build/inputs"
	"vers/internal/catalog"
)

// benchBuildImage builds a Dockerfile of a small base, one COPY and three RUN into a rootfs image, as vers build does: nothing
// known, with the last line changed, everything known. It does so with a folder of one file, and with one of many. The
// baseline is the engine's build of the folder alone, with its own cache, so that what reading, sending and unpacking the
// folder, export and file system cost shows.
func benchBuildImage(ctx context.Context, l *lab, r *report, n int) error {
	for _, size := range []struct{ files, mib, n int }{{1, 1, n}, {5000, 100, max(n/4, 2)}} {
		b := imageBuilder{l: l, service: l.daemon.Images()}
		if err := b.folder(size.files, size.mib); err != nil {
			return err
		}
		params := map[string]string{"folder_files": fmt.Sprint(size.files), "folder_mib": fmt.Sprint(size.mib)}
		if err := errors.Join(b.measure(ctx, r, params, size.n), os.RemoveAll(b.dir)); err != nil {
			return err
		}
	}
	return nil
}

func (b *imageBuilder) measure(ctx context.Context, r *report, params map[string]string, n int) error {
	eng, err := b.service.Engines.Engine(ctx, b.l.caller.OrgID)
	if err != nil {
		return err
	}
	var before catalog.Image
	if before, err = b.build(ctx, "", false); err != nil { // the store is made
		return err
	}
	for _, kind := range []struct {
		name    string
		noCache bool
		last    func(i int, who string) string
		same    bool
	}{
		{"image build, cold", true, func(int, string) string { return "" }, false},
		{"image build, one line changed", false, func(i int, who string) string { return fmt.Sprintf("; echo %d %s > /srv/last", i, who) }, false},
		{"image build, warm", false, func(int, string) string { return "" }, true},
	} {
		var ours, alone samples
		for i := range n {
			began := time.Now()
			img, err := b.build(ctx, kind.last(i, "ours"), kind.noCache)
			if err != nil {
				return err
			}
			// The first warm one takes the place of the image before it.
			if took := time.Since(began); !kind.same || i > 0 {
				ours.add(took)
			}
			if same := img.File == before.File; same != kind.same && i > 0 {
				return fmt.Errorf("%s: the file system stayed: %v", kind.name, same)
			}
			before = img
			took, err := b.alone(ctx, eng, kind.last(i, "alone"), kind.noCache)
			if err != nil {
				return err
			}
			alone.add(took)
		}
		r.compare(kind.name, "ms", params, ours, "the engine's build alone", alone)
	}
	return nil
}

type imageBuilder struct {
	l       *lab
	service *images.Service
	dir     string // the folder
}

// folder makes a folder with a base, busybox of this machine, and a number of files of a size in all.
func (b *imageBuilder) folder(files, mib int) (err error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("the measured Dockerfile stands on busybox: %w", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var base bytes.Buffer
	w := tar.NewWriter(&base)
	err = errors.Join(w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}), second(w.Write(program)))
	for _, name := range []string{"sh", "seq", "sha256sum", "mkdir", "tar", "echo"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(b.l.dir, "folder."); err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(b.dir, "base.tar"), base.Bytes(), 0o644)
	for i := range files {
		name := filepath.Join(b.dir, "data", fmt.Sprint(i/100), fmt.Sprint(i))
		text := bytes.Repeat(fmt.Appendf(nil, "%08d", i), mib<<20/files/8)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, text, 0o644))
	}
	return err
}

func second(_ int, err error) error { return err }

func (b *imageBuilder) dockerfile(last string) error {
	return os.WriteFile(filepath.Join(b.dir, "Dockerfile"), fmt.Appendf(nil, `FROM scratch
ADD base.tar /
COPY data /srv/data
RUN mkdir -p /srv/app && seq 20000 | sha256sum > /srv/app/sum
RUN i=0; while [ $i -lt 200 ]; do echo $i > /srv/app/$i; i=$((i+1)); done
RUN tar c -C /srv app | sha256sum > /srv/app.sum%s
`, last), 0o644)
}

// archive is the folder as its client sends it.
func (b *imageBuilder) archive() *io.PipeReader {
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		err := archive.AddFS(os.DirFS(b.dir))
		w.CloseWithError(errors.Join(err, archive.Close()))
	}()
	return r
}

// digest is what a client reads the folder for before it sends it.
func (b *imageBuilder) digest() (string, error) {
	folder := b.archive()
	defer folder.Close()
	sum := inputs.New()
	for archive := tar.NewReader(folder); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return sum.String(), nil
		}
		if err == nil {
			err = sum.WriteHeader(h)
		}
		if err == nil {
			_, err = io.Copy(sum, archive)
		}
		if err != nil {
			return "", err
		}
	}
}

// build does all that vers build does and has done, but for HTTP.
func (b *imageBuilder) build(ctx context.Context, last string, noCache bool) (catalog.Image, error) {
	if err := b.dockerfile(last); err != nil {
		return catalog.Image{}, err
	}
	digest, err := b.digest()
	if err != nil {
		return catalog.Image{}, err
	}
	folder := b.archive()
	defer folder.Close()
	return b.service.Build(ctx, images.Request{OrgID: b.l.caller.OrgID, KeyID: b.l.caller.KeyID, Name: "measured", Replace: true},
		images.Dockerfile{NoCache: noCache, Folder: digest}, folder)
}

// alone has the engine build the folder where it lies.
func (b *imageBuilder) alone(ctx context.Context, eng engine.Engine, last string, noCache bool) (took time.Duration, err error) {
	if err := b.dockerfile(last); err != nil {
		return 0, err
	}
	began := time.Now()
	_, err = eng.Build(ctx, engine.Build{Context: b.dir, Dockerfile: "Dockerfile", NoCache: noCache})
	return time.Since(began), err
}
