package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/rootfs"
)

// Request asks for an image.
type Request struct {
	OrgID, KeyID string
	Name         string
	Description  *string
	Replace      bool      // an image that has the name is made anew; else it is a conflict
	FreeMiB      int64     // room in the file system beyond its content; below 0: none, 0: 256
	SizeMiB      int64     // of the file system, at least
	RootFS       bool      // an upload is a root file system, also with a Dockerfile at its top
	Keep         []string  // rootfs.Mended files that stay as an uploaded root file system has them
	Log          io.Writer // what happens and what steps print, as it comes; nil: nobody reads it
	// Began is called when all that was uploaded has been read. nil: nobody wants to know.
	Began func()
}

// content is what an image is made of. Its archive is read once.
type content struct {
	kind, source string // as in catalog.Image
	origin       string // of an engine: name and digest; "" not known
	config       catalog.ImageConfig
	write        func(ctx context.Context, w io.Writer) error // writes a tar archive of the root file system
}

// source finds the content, in a directory of its own that goes when the image is made.
type source func(ctx context.Context, dir string, log io.Writer) (content, error)

// making is one image on its way.
type making struct {
	s       *Service
	req     Request
	job     catalog.ImageJob
	release func()
}

// begin checks a request and records that its image is being made. finish must be called.
func (s *Service) begin(ctx context.Context, req Request) (*making, error) {
	if err := CheckName(req.Name); err != nil {
		return nil, err
	}
	if req.SizeMiB < 0 || req.SizeMiB > maxSizeMiB || req.FreeMiB > maxSizeMiB {
		return nil, fault.Invalidf("the size of an image can be at most %d MiB", maxSizeMiB)
	}
	if req.Log == nil {
		req.Log = io.Discard
	}
	if req.Began == nil {
		req.Began = func() {}
	}
	release, err := s.claim(req.OrgID, req.Name)
	if err != nil {
		return nil, err
	}
	m := &making{s: s, req: req, release: release}
	if err := m.record(ctx); err != nil {
		release()
		return nil, err
	}
	return m, nil
}

const maxSizeMiB = 32768

func (m *making) record(ctx context.Context) error {
	if !m.req.Replace {
		if _, err := m.s.Catalog.OwnImage(ctx, m.req.OrgID, m.req.Name); err == nil {
			return fault.Conflictf("image '%s' already exists; choose another name, or delete it first", m.req.Name)
		} else if !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	// Before anything is uploaded: an organisation without room would do it for nothing.
	free, err := m.s.Reserve(ctx, m.req.OrgID, 1)
	if err != nil {
		return err
	}
	free()
	m.job = catalog.ImageJob{ID: ident.New(), OrgID: m.req.OrgID, Name: m.req.Name, State: catalog.ImagePending, CreatedAt: time.Now()}
	return m.s.Catalog.PutImageJob(ctx, m.job)
}

// run makes the image. Whatever its end, nothing is left but the image and the record of the job.
func (m *making) run(ctx context.Context, from source) (catalog.Image, error) {
	defer m.release()
	limited, cancel := context.WithTimeoutCause(ctx, m.s.Limit, errLimit)
	defer cancel()
	stop := context.AfterFunc(m.s.life, cancel)
	defer stop()
	began := time.Now()
	img, err := m.make(limited, from)
	if err != nil {
		err = m.explain(limited, err)
	}
	if ended := m.end(context.WithoutCancel(ctx), err); ended != nil {
		m.s.Logger.Warn("end of an image's making not recorded", "image", m.req.Name, "error", ended)
	}
	if err != nil {
		m.s.Logger.Info("image not made", "organisation", m.req.OrgID, "image", m.req.Name, "took", time.Since(began), "error", err)
		return img, err
	}
	m.s.Logger.Info("image made", "organisation", m.req.OrgID, "image", m.req.Name, "id", img.ID, "took", time.Since(began))
	return img, nil
}

var errLimit = errors.New("the time limit ran out")

// explain gives an error the kind that its cause has.
func (m *making) explain(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errLimit):
		return fault.New(fault.Timeout, "image '%s' was not made within %s, the limit for upload and build together", m.req.Name, m.s.Limit)
	case m.s.life.Err() != nil:
		return fault.Unavailablef("versd stops: image '%s' was not made; try again", m.req.Name)
	case cause != nil:
		return fault.New(fault.Unavailable, "image '%s' was not made: its client went away: %w", m.req.Name, cause)
	case errors.Is(err, syscall.ENOSPC):
		return fault.Exhaustedf("image '%s' was not made: the disk of the server is full", m.req.Name)
	}
	return err
}

// end records how the making ended.
func (m *making) end(ctx context.Context, err error) error {
	now := time.Now()
	m.job.State, m.job.EndedAt = catalog.ImageReady, &now
	if err != nil {
		m.job.State, m.job.Reason = catalog.ImageFailed, err.Error()
	}
	return m.s.Catalog.SetImageJob(ctx, m.job)
}

func (m *making) make(ctx context.Context, from source) (img catalog.Image, err error) {
	select {
	case m.s.slots <- struct{}{}:
	case <-ctx.Done():
		return img, context.Cause(ctx)
	}
	dir := filepath.Join(m.s.buildsDir(), m.job.ID)
	defer func() { err = m.tidy(dir, err) }()
	m.job.State = catalog.ImageBuilding
	if err := m.s.Catalog.SetImageJob(ctx, m.job); err != nil {
		return img, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return img, err
	}
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		return img, err
	}
	c, err := from(ctx, work, m.req.Log)
	if err != nil {
		return img, err
	}
	if same, err := m.unchanged(ctx, &c); err != nil || same.ID != "" {
		return same, err
	}
	temp := filepath.Join(dir, "rootfs.ext4")
	fmt.Fprintf(m.req.Log, "Writing the root file system\n")
	result, err := m.write(ctx, c, temp)
	if err != nil {
		return img, err
	}
	for _, w := range result.Warnings {
		fmt.Fprintf(m.req.Log, "Warning: %s\n", w)
	}
	return m.publish(ctx, c, result, temp)
}

// tidy removes the folder of a making, and gives its slot to the next one. An image that is there need not wait for that:
// a slow disk takes seconds to remove a folder of many files.
func (m *making) tidy(dir string, err error) error {
	if err != nil {
		defer func() { <-m.s.slots }()
		return errors.Join(err, os.RemoveAll(dir))
	}
	m.s.running.Go(func() {
		defer func() { <-m.s.slots }()
		if err := os.RemoveAll(dir); err != nil {
			m.s.Logger.Warn("the folder of a build stays until versd starts again", "folder", dir, "error", err)
		}
	})
	return nil
}

// layout is raised when equal trees of engines become other files: by what rootfs mends, or by the options below.
const layout = 2

// unchanged gives the image as it is, if it was made of the same: then nothing needs to be written. It completes the origin.
func (m *making) unchanged(ctx context.Context, c *content) (catalog.Image, error) {
	if c.origin == "" {
		return catalog.Image{}, nil
	}
	c.origin = fmt.Sprintf("%s layout %d free %d size %d", c.origin, layout, m.req.FreeMiB, m.req.SizeMiB)
	if len(m.req.Keep) > 0 {
		c.origin += fmt.Sprintf(" keep %q", m.req.Keep)
	}
	before, err := m.s.Catalog.OwnImage(ctx, m.req.OrgID, m.req.Name)
	if fault.Is(err, fault.NotFound) {
		return catalog.Image{}, nil
	}
	if err != nil || before.Origin != c.origin {
		return catalog.Image{}, err
	}
	img, err := m.describe(*c, rootfs.Result{SizeBytes: before.SizeMiB << 20, Tree: before.Digest})
	if err != nil {
		return img, err
	}
	fmt.Fprintf(m.req.Log, "Nothing has changed: the root file system stays\n")
	img.File = before.File
	return m.replace(ctx, before, img, 0)
}

// write streams the content into a file system.
func (m *making) write(ctx context.Context, c content, path string) (rootfs.Result, error) {
	headroom := max(m.req.FreeMiB, 0) << 20
	if m.req.FreeMiB == 0 {
		headroom = defaultFreeMiB << 20
	}
	var result rootfs.Result
	r, w := io.Pipe()
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := c.write(gctx, w)
		w.CloseWithError(err) // nil is the end of the archive
		return err
	})
	group.Go(func() (err error) {
		result, err = m.s.Write(gctx, r, path, rootfs.Options{Type: rootfs.Ext4, Bootable: true, HeadroomBytes: headroom, Keep: m.req.Keep})
		r.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // who writes must not wait for a reader that is gone
		return err
	})
	if err := group.Wait(); err != nil {
		return result, err
	}
	if least := m.req.SizeMiB << 20; result.SizeBytes < least {
		// The guest grows the file system into its disk; until then the rest of the file is a hole.
		if err := os.Truncate(path, least); err != nil {
			return result, err
		}
		result.SizeBytes = least
	}
	return result, settle(path)
}

const defaultFreeMiB = 256

// settle brings a file to stable storage and takes the write permission from everybody. VM processes of every
// organisation may read it: a fork takes a disk across the border, with the image below it.
func settle(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o444), f.Sync(), f.Close())
}

// describe makes the row of an image.
func (m *making) describe(c content, result rootfs.Result) (catalog.Image, error) {
	config, err := json.Marshal(c.config)
	return catalog.Image{
		ID: m.job.ID, OrgID: m.req.OrgID, OwnerID: m.req.KeyID, Name: m.req.Name, Description: m.req.Description,
		File: commit.ImageFile(m.job.ID), Digest: result.Tree, SizeMiB: (result.SizeBytes + 1<<20 - 1) >> 20,
		SourceType: c.kind, Source: c.source, Origin: c.origin, Config: config, CreatedAt: time.Now(),
	}, err
}

// publish names the file and makes the image visible.
func (m *making) publish(ctx context.Context, c content, result rootfs.Result, temp string) (catalog.Image, error) {
	img, err := m.describe(c, result)
	if err != nil {
		return img, err
	}
	before, err := m.s.Catalog.OwnImage(ctx, m.req.OrgID, m.req.Name)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return img, err
	}
	if before.Digest == img.Digest && before.SizeMiB == img.SizeMiB {
		// The same tree: the file stays, and with it what was booted from it once for all.
		img.File = before.File
		return m.replace(ctx, before, img, 0)
	}
	stored, err := allocated(temp)
	if err != nil {
		return img, err
	}
	free, err := m.s.Reserve(ctx, m.req.OrgID, stored)
	if err != nil {
		return img, err
	}
	defer free()
	defer m.s.Commits.Hold()()
	path := filepath.Join(m.s.imagesDir(), img.File)
	if err := os.Rename(temp, path); err != nil {
		return img, err
	}
	if img, err = m.named(ctx, before, img, stored); err != nil {
		return img, errors.Join(err, os.Remove(path))
	}
	m.s.Collect() // what had the name before
	return img, nil
}

// named makes the name of the file durable, then the image visible.
func (m *making) named(ctx context.Context, before, img catalog.Image, stored int64) (catalog.Image, error) {
	d, err := os.Open(m.s.imagesDir())
	if err != nil {
		return img, err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return img, err
	}
	return m.replace(ctx, before, img, stored)
}

// replace writes the rows. The id of an image stays when it is made anew.
func (m *making) replace(ctx context.Context, before, img catalog.Image, stored int64) (catalog.Image, error) {
	if err := ctx.Err(); err != nil {
		return img, err // what its client has given up must not appear
	}
	if before.ID != "" {
		img.ID = before.ID
		if img.Description == nil {
			img.Description = before.Description
		}
	}
	return img, m.s.Catalog.InTx(context.WithoutCancel(ctx), func(tx *catalog.Tx) error {
		if stored > 0 {
			if err := tx.InsertImageFile(ctx, catalog.ImageFile{Name: img.File, OrgID: img.OrgID, StoredBytes: stored, CreatedAt: img.CreatedAt}); err != nil {
				return err
			}
		}
		if before.ID == "" {
			return tx.InsertImage(ctx, img)
		}
		return tx.UpdateImage(ctx, img)
	})
}

func allocated(path string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil
}
