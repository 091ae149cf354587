// Package images makes the rootfs images of organisations and keeps them: of a Dockerfile with its folder, of an image in a
// registry, of a root file system in an archive.
//
// An image is a row of the catalogue and a file. Both appear in one step when the file is on stable storage, or neither:
//
//	builds/<job>/     what a build unpacks, and the file while it is written; gone when it ends, whatever its end
//	images/<id>.ext4  the file afterwards; never written again
//
// Making an image anew gives its name another file. Disks that stand on the old one keep it; it goes when none does, and
// internal/commit is who removes it.
package images

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vers/internal/build/engine"
	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/rootfs"
)

// Protected is the name of the image that every server has.
const Protected = "default"

// Engines gives every organisation an engine of its own: what one has pulled and built must not be found by another.
type Engines interface {
	// Engine MUST be quick where the organisation has one already. The caller does not close it.
	Engine(ctx context.Context, orgID string) (engine.Engine, error)
	// Sweep removes what killed builds of all organisations left behind.
	Sweep(ctx context.Context) error
}

// Options of a Service.
type Options struct {
	DataDir string
	Catalog *catalog.Catalog
	Commits *commit.Store
	Engines Engines
	Logger  *slog.Logger

	// Write makes a file system of an archive: rootfs.Write.
	Write func(ctx context.Context, archive io.Reader, path string, o rootfs.Options) (rootfs.Result, error)
	// Reserve holds a part of an organisation's quota of stored bytes until release is called. nil: there are no quotas.
	Reserve func(ctx context.Context, orgID string, bytes int64) (release func(), err error)
	// Collect is called when a file may have become useless. nil: nobody collects.
	Collect func()

	Limit    time.Duration // of the making of one image, with its upload; 0: 10 minutes
	Parallel int           // made at once; 0: 4
	Context  rootfs.Limits // of what is uploaded; zero values: 16 GiB, a million entries
}

// Service makes and removes images. It is safe for concurrent use.
type Service struct {
	Options
	slots chan struct{}

	mu      sync.Mutex
	making  map[string]bool // by organisation and name
	life    context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
}

const (
	defaultLimit    = 10 * time.Minute
	defaultParallel = 4
	defaultBytes    = 16 << 30
	defaultEntries  = 1_000_000
	failedKept      = 7 * 24 * time.Hour
)

// Open makes a service, after it has removed what an earlier process left half made. ctx bounds only that.
func Open(ctx context.Context, o Options) (*Service, error) {
	if o.Limit == 0 {
		o.Limit = defaultLimit
	}
	if o.Parallel == 0 {
		o.Parallel = defaultParallel
	}
	if o.Context.Bytes == 0 {
		o.Context.Bytes = defaultBytes
	}
	if o.Context.Entries == 0 {
		o.Context.Entries = defaultEntries
	}
	if o.Reserve == nil {
		o.Reserve = func(context.Context, string, int64) (func(), error) { return func() {}, nil }
	}
	if o.Collect == nil {
		o.Collect = func() {}
	}
	s := &Service{Options: o, slots: make(chan struct{}, o.Parallel), making: map[string]bool{}}
	s.life, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.sweep(ctx); err != nil {
		s.stop()
		return nil, fmt.Errorf("remove what unfinished image builds left: %w", err)
	}
	return s, nil
}

// Close ends what is being made and waits until nothing is left of it.
func (s *Service) Close() {
	s.mu.Lock()
	s.stop()
	s.mu.Unlock()
	s.running.Wait()
}

func (s *Service) sweep(ctx context.Context) error {
	now := time.Now()
	if err := s.Catalog.FailImageJobs(ctx, "versd ended while the image was being made; make it again", now); err != nil {
		return err
	}
	if err := s.Catalog.RemoveImageJobsBefore(ctx, now.Add(-failedKept)); err != nil {
		return err
	}
	if err := s.Engines.Sweep(ctx); err != nil {
		s.Logger.Warn("leftovers of builds stay", "error", err)
	}
	if err := os.RemoveAll(s.buildsDir()); err != nil {
		return err
	}
	// Passable, not listable: the processes of VMs reach the files whose names they were given.
	for _, dir := range []string{s.buildsDir(), s.imagesDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) buildsDir() string { return filepath.Join(s.DataDir, "builds") }
func (s *Service) imagesDir() string { return filepath.Join(s.DataDir, "images") }

// CheckName refuses what cannot name an image of an organisation.
func CheckName(name string) error {
	switch {
	case name == Protected:
		return fault.Invalidf("the image '%s' is protected: choose another name", name)
	case !ident.ValidName(name, ident.ImageName):
		return fault.Invalidf("invalid image name %q: use 1 to %d letters, digits, '-', '_' or '.'", name, ident.ImageName)
	}
	return nil
}

// Image gives the image that an organisation means by a name or id: its own, else everybody's.
func (s *Service) Image(ctx context.Context, orgID, nameOrID string) (catalog.Image, error) {
	own, err := s.Catalog.OwnImage(ctx, orgID, nameOrID)
	if fault.Is(err, fault.NotFound) {
		return s.Catalog.PublicImage(ctx, nameOrID)
	}
	return own, err
}

// Status says how far the making of an image is. The image is what the name stands for now, if anything: while it is made
// anew, and after that has failed, the earlier one.
func (s *Service) Status(ctx context.Context, orgID, name string) (catalog.ImageJob, *catalog.Image, error) {
	img, err := s.Image(ctx, orgID, name)
	found := err == nil
	if err != nil && !fault.Is(err, fault.NotFound) {
		return catalog.ImageJob{}, nil, err
	}
	job, err := s.Catalog.ImageJob(ctx, orgID, name)
	switch {
	case err == nil && found:
		return job, &img, nil
	case err == nil:
		return job, nil, nil
	case fault.Is(err, fault.NotFound) && found:
		return catalog.ImageJob{ID: img.ID, OrgID: img.OrgID, Name: img.Name, State: catalog.ImageReady, CreatedAt: img.CreatedAt, EndedAt: &img.CreatedAt}, &img, nil
	}
	return job, nil, err
}

// Delete removes an image of an organisation, by name or id. VMs whose disks stand on it make that a conflict; commits do
// not, since they keep the file.
func (s *Service) Delete(ctx context.Context, orgID, nameOrID string) (catalog.Image, error) {
	img, err := s.Catalog.OwnImage(ctx, orgID, nameOrID)
	if fault.Is(err, fault.NotFound) {
		if public, err := s.Catalog.PublicImage(ctx, nameOrID); err == nil {
			return public, fault.Forbiddenf("image '%s' belongs to the server: it is protected and cannot be deleted", public.Name)
		}
	}
	if err != nil {
		return img, err
	}
	release, err := s.claim(orgID, img.Name)
	if err != nil {
		return img, err
	}
	defer release()
	err = s.Catalog.InTx(ctx, func(tx *catalog.Tx) error {
		n, err := tx.ImageUsers(ctx, orgID, img.File)
		if err != nil {
			return err
		}
		if n > 0 {
			return fault.Conflictf("image '%s' is in use by %d VMs; delete them first, or build it anew under its name: VMs keep what they were started from", img.Name, n)
		}
		if err := tx.RemoveImage(ctx, img.ID); err != nil {
			return err
		}
		return tx.RemoveImageJob(ctx, orgID, img.Name)
	})
	if err == nil {
		s.Collect()
	}
	return img, err
}

// claim keeps everybody else from making or removing an image of a name.
func (s *Service) claim(orgID, name string) (release func(), err error) {
	key := orgID + "/" + name
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.making[key] {
		return nil, fault.Conflictf("image '%s' is being made right now; wait until that has ended (its status says so)", name)
	}
	if s.life.Err() != nil {
		return nil, fault.Unavailablef("versd stops; try again when it is back")
	}
	s.making[key] = true
	s.running.Add(1)
	return sync.OnceFunc(func() {
		defer s.running.Done()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.making, key)
	}), nil
}
