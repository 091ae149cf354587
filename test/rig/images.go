package rig

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"vers/internal/build/engine"
	enginefake "vers/internal/build/engine/fake"
	"vers/internal/build/images"
	"vers/internal/machine/testguest"
	"vers/internal/rootfs"
)

// openImages makes the service of image builds. Its files hold what the machines of fake run, not what was built.
func (s *Server) openImages() *images.Service {
	service, err := images.Open(context.Background(), images.Options{
		DataDir: s.Dir, Catalog: s.Catalog, Commits: s.Commits, Engines: engines{s.Engine}, Logger: slog.New(slog.DiscardHandler),
		Write: writeGuest, Reserve: s.Manager.ReserveStorage, Collect: s.Manager.CollectSoon,
	})
	s.must(err)
	return service
}

// engines gives every organisation the same one.
type engines struct{ engine *enginefake.Engine }

func (e engines) Engine(context.Context, string) (engine.Engine, error) { return e.engine, nil }
func (e engines) Sweep(ctx context.Context) error                       { return e.engine.Sweep(ctx) }

// writeGuest reads an archive, and writes a guest.
func writeGuest(_ context.Context, archive io.Reader, path string, _ rootfs.Options) (rootfs.Result, error) {
	h := sha256.New()
	if _, err := io.Copy(h, archive); err != nil {
		return rootfs.Result{}, err
	}
	const size = 1 << 20
	if err := errors.Join(testguest.WriteCounting(path), os.Truncate(path, size)); err != nil {
		return rootfs.Result{}, err
	}
	return rootfs.Result{SizeBytes: size, UsedBytes: size, Tree: fmt.Sprintf("sha256:%x", h.Sum(nil))}, nil
}
