package rig

import (
	"archive/tar"
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
	"vers/internal/fault"
	"vers/internal/machine/testguest"
	"vers/internal/rootfs"
)

// openImages makes the service of image builds. Its files hold what the machines of fake run, not what was built.
func (s *Server) openImages() *images.Service {
	service, err := images.Open(context.Background(), images.Options{
		DataDir: s.Dir, Catalog: s.Catalog, Commits: s.Commits, Engines: engines{s.Engine}, Logger: slog.New(slog.DiscardHandler),
		Write: s.writeGuest, Reserve: s.Manager.ReserveStorage, Collect: s.Manager.CollectSoon,
	})
	s.must(err)
	return service
}

// engines gives every organisation the same one.
type engines struct{ engine *enginefake.Engine }

func (e engines) Engine(context.Context, string) (engine.Engine, error) { return e.engine, nil }
func (e engines) Sweep(ctx context.Context) error                       { return e.engine.Sweep(ctx) }

// Built lists what is in an image of acme: names with modes, links with their targets.
func (s *Server) Built(name string) []string {
	image, err := s.Catalog.OwnImage(context.Background(), s.Acme.OrgID, name)
	s.must(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.built[image.Digest]
}

// writeGuest reads an archive, and writes a guest.
func (s *Server) writeGuest(_ context.Context, archive io.Reader, path string, _ rootfs.Options) (rootfs.Result, error) {
	h := sha256.New()
	names, err := list(io.TeeReader(archive, h))
	if err != nil {
		return rootfs.Result{}, err
	}
	digest := fmt.Sprintf("sha256:%x", h.Sum(nil))
	s.mu.Lock()
	s.built[digest] = names
	s.mu.Unlock()
	const size = 1 << 20
	if err := errors.Join(testguest.WriteCounting(path), os.Truncate(path, size)); err != nil {
		return rootfs.Result{}, err
	}
	return rootfs.Result{SizeBytes: size, UsedBytes: size, Tree: digest}, nil
}

// list reads an archive to its end.
func list(archive io.Reader) (names []string, err error) {
	for tape := tar.NewReader(archive); ; {
		e, err := tape.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, archive)
			return names, err
		}
		if err != nil {
			return nil, fault.Invalidf("read the archive: %w", err)
		}
		if e.Linkname != "" {
			names = append(names, e.Name+" -> "+e.Linkname)
			continue
		}
		names = append(names, fmt.Sprintf("%s %o", e.Name, e.Mode&0o7777))
	}
}
