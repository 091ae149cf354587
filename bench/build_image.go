package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"vers/internal/build/engine"
	"vers/internal/build/images"
)

// benchBuildImage builds a Dockerfile of a small base, one COPY and three RUN into a rootfs image: nothing known, with the
// last line changed, everything known. The baseline is the engine's build of the same folder alone, so that what unpacking,
// export and file system cost shows.
func benchBuildImage(ctx context.Context, l *lab, r *report, n int) error {
	b := imageBuilder{l: l, service: l.daemon.Images()}
	if err := b.folder(); err != nil {
		return err
	}
	eng, err := b.service.Engines.Engine(ctx, l.caller.OrgID)
	if err != nil {
		return err
	}
	if err := b.build(ctx, "", false); err != nil { // the store is made
		return err
	}
	kinds := []struct {
		name    string
		noCache bool
		last    func(i int, who string) string
	}{
		{"image build, cold", true, func(int, string) string { return "" }},
		{"image build, one line changed", false, func(i int, who string) string { return fmt.Sprintf("; echo %d %s", i, who) }},
		{"image build, warm", false, func(int, string) string { return "" }},
	}
	for _, kind := range kinds {
		var ours, alone samples
		for i := range n {
			began := time.Now()
			if err := b.build(ctx, kind.last(i, "ours"), kind.noCache); err != nil {
				return err
			}
			ours.add(time.Since(began))
			took, err := b.alone(ctx, eng, kind.last(i, "alone"), kind.noCache)
			if err != nil {
				return err
			}
			alone.add(took)
		}
		r.compare(kind.name, "ms", nil, ours, "the engine's build alone", alone)
	}
	return nil
}

type imageBuilder struct {
	l       *lab
	service *images.Service
	base    []byte // tar of a root file system with a shell
}

// folder makes the base: busybox of this machine.
func (b *imageBuilder) folder() error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("the measured Dockerfile stands on busybox: %w", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err = errors.Join(w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}), second(w.Write(program)))
	for _, name := range []string{"sh", "seq", "sha256sum", "mkdir", "tar", "echo"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}))
	}
	err = errors.Join(err, w.Close())
	b.base = archive.Bytes()
	return err
}

func second(_ int, err error) error { return err }

func (b *imageBuilder) files(last string) map[string][]byte {
	return map[string][]byte{
		"base.tar": b.base, "data": bytes.Repeat([]byte("data"), 1<<18),
		"Dockerfile": fmt.Appendf(nil, `FROM scratch
ADD base.tar /
COPY data /srv/data
RUN mkdir -p /srv/app && seq 20000 | sha256sum > /srv/app/sum
RUN i=0; while [ $i -lt 200 ]; do echo $i > /srv/app/$i; i=$((i+1)); done
RUN tar c -C /srv app | sha256sum > /srv/app.sum%s
`, last),
	}
}

// build does all that vers build has done on the server.
func (b *imageBuilder) build(ctx context.Context, last string, noCache bool) error {
	var folder bytes.Buffer
	w := tar.NewWriter(&folder)
	for name, data := range b.files(last) {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}), second(w.Write(data))); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, err := b.service.Build(ctx, images.Request{OrgID: b.l.caller.OrgID, KeyID: b.l.caller.KeyID, Name: "measured", Replace: true},
		images.Dockerfile{NoCache: noCache}, &folder)
	return err
}

// alone has the engine build the same folder.
func (b *imageBuilder) alone(ctx context.Context, eng engine.Engine, last string, noCache bool) (took time.Duration, err error) {
	dir, err := os.MkdirTemp(b.l.dir, "folder.")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, data := range b.files(last) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	_, err = eng.Build(ctx, engine.Build{Context: dir, Dockerfile: "Dockerfile", NoCache: noCache})
	return time.Since(began), err
}
