package commit

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"lukechampine.com/blake3"

	"vers/internal/catalog"
	"vers/internal/disk"
	"vers/internal/fault"
	"vers/internal/ident"
)

// Store keeps commits, layers and flat files below one data directory. It is safe for concurrent use by one process;
// the owner of the data directory must be the only one.
//
// Whoever uses files of a commit holds a lease; Collect removes only what is neither named by the catalogue nor
// leased, so work in flight is never collected.
type Store struct {
	dir          string
	catalog      *catalog.Catalog
	log          *slog.Logger
	bootID       string
	flatBudget   int64
	writableFlat bool // QEMU here opens flat files read-write (design 2.1, traps)
	owned        bool // we are root: files get the organisation's group
	now          func() time.Time

	mu       sync.Mutex
	leases   map[string]int           // by commit or layer id: flat file and device state, or disk, in use
	building map[string]chan struct{} // flat files being rebuilt

	// Read: files exist that the catalogue does not name yet. Write: Collect, which only tries, so that read locks nest.
	work      sync.RWMutex
	measuring sync.Mutex // one at a time looks at the sizes of files
}

// Options of a Store.
type Options struct {
	Dir          string
	Catalog      *catalog.Catalog
	Logger       *slog.Logger
	FlatBudget   int64 // bytes of flat files kept that no VM maps; 0: 64 GiB
	WritableFlat bool
	Now          func() time.Time // nil: time.Now
}

// Open makes the directories below dir. What an earlier process left half made goes with the first Collect.
func Open(o Options) (*Store, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read the host's boot id: %w", err)
	}
	s := &Store{
		dir: o.Dir, catalog: o.Catalog, log: o.Logger, bootID: strings.TrimSpace(string(boot)),
		flatBudget: o.FlatBudget, writableFlat: o.WritableFlat, owned: os.Geteuid() == 0,
		leases: map[string]int{}, building: map[string]chan struct{}{}, now: o.Now,
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.flatBudget == 0 {
		s.flatBudget = 64 << 30
	}
	for _, sub := range []string{"commits", "flats", "layers"} {
		// Passable, not listable: the processes of VMs reach the files whose names they were given.
		if err := os.MkdirAll(filepath.Join(s.dir, sub), 0o711); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Hold keeps Collect from running until release is called. Held while files are made that the catalogue does not
// name yet.
func (s *Store) Hold() (release func()) {
	s.work.RLock()
	return s.work.RUnlock
}

func (s *Store) commitDir(id string) string { return filepath.Join(s.dir, "commits", id) }

// FlatPath is where the flat file of a commit is, if it exists.
func (s *Store) FlatPath(id string) string { return filepath.Join(s.dir, "flats", id+".ram") }

// DeviceState is the path of a commit's device state.
func (s *Store) DeviceState(id string) string { return filepath.Join(s.commitDir(id), "device.state") }

func (s *Store) delta(id string) string { return filepath.Join(s.commitDir(id), "memory.delta") }

// Lease protects a commit's files, and the disk layers that it stands on now, from Collect until release is called: a
// commit may be put on other layers meanwhile (Flatten). It waits while Collect runs. fault.NotFound if the commit is
// gone.
func (s *Store) Lease(ctx context.Context, id string) (c catalog.Commit, release func(), err error) {
	defer s.Hold()()
	c, err = s.catalog.Commit(ctx, id)
	if err != nil {
		return c, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[id]++
	s.leases[c.LayerID]++
	return c, sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range []string{c.ID, c.LayerID} {
			if s.leases[id]--; s.leases[id] == 0 {
				delete(s.leases, id)
			}
		}
	}), nil
}

func (s *Store) leased(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases[id] > 0
}

// NewLayer makes an empty overlay on top of parent ("" directly on image) and names it in the catalogue. The process
// with that uid and gid may write to it. size is the virtual size in bytes.
func (s *Store) NewLayer(ctx context.Context, orgID, parent, image string, size int64, uid, gid int) (catalog.Layer, error) {
	l := catalog.Layer{ID: ident.New(), OrgID: orgID, ParentID: parent, ImageFile: image, CreatedAt: time.Now()}
	backing, format := filepath.Join("..", "images", image), "raw"
	if parent != "" {
		backing, format = parent+".qcow2", "qcow2"
	}
	path := s.LayerPath(l.ID)
	if err := disk.CreateOverlay(path, size, backing, format); err != nil {
		return l, err
	}
	if s.owned {
		if err := os.Chown(path, uid, gid); err != nil {
			os.Remove(path)
			return l, err
		}
	}
	if err := s.catalog.InsertLayer(ctx, l); err != nil {
		os.Remove(path)
		return l, err
	}
	return l, nil
}

// DropLayer removes a layer that nothing was built on: an overlay that never became active, or that of a VM that
// could not be started.
func (s *Store) DropLayer(ctx context.Context, id string) {
	if err := s.catalog.RemoveLayer(ctx, id); err != nil {
		s.log.Warn("layer stays in the catalogue", "layer", id, "error", err)
		return
	}
	os.Remove(s.LayerPath(id))
}

// LayerPath is the path of a layer's file.
func (s *Store) LayerPath(id string) string { return filepath.Join(s.dir, "layers", id+".qcow2") }

// ImagePath is the path of an image's file.
func (s *Store) ImagePath(file string) string { return filepath.Join(s.dir, "images", file) }

// Chain gives the layers from the bottom to id, and the image file they stand on.
func (s *Store) Chain(ctx context.Context, id string) (layers []catalog.Layer, image string, err error) {
	layers, err = s.catalog.LayerChain(ctx, id)
	if err == nil && len(layers) == 0 {
		err = fault.NotFoundf("disk layer %s not found", id)
	}
	if err != nil {
		return nil, "", err
	}
	return layers, layers[0].ImageFile, nil
}

// Files gives the paths of a layer chain, the image first.
func (s *Store) Files(ctx context.Context, id string) ([]string, error) {
	layers, image, err := s.Chain(ctx, id)
	if err != nil {
		return nil, err
	}
	files := []string{s.ImagePath(image)}
	for _, l := range layers {
		files = append(files, s.LayerPath(l.ID))
	}
	return files, nil
}

// FreezeFile takes the write permission for a layer from everybody and gives the organisation's processes the read
// permission. QEMU processes that have it open keep it open.
func (s *Store) FreezeFile(id string, gid int) error {
	path := s.LayerPath(id)
	if s.owned {
		if err := os.Chown(path, 0, gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, 0o440)
}

// share lets the processes of an organisation map a flat file.
func (s *Store) share(path string, gid int) error {
	mode := fs.FileMode(0o440)
	if s.writableFlat {
		mode = 0o660
	}
	if s.owned {
		if err := os.Chown(path, 0, gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, mode)
}

// Manifest reads a commit's manifest.
func (s *Store) Manifest(c catalog.Commit) (Manifest, error) { return ParseManifest(c.Manifest) }

// hashFile gives size and BLAKE3 of a file.
func hashFile(path string) (FileDigest, error) {
	f, err := os.Open(path)
	if err != nil {
		return FileDigest{}, err
	}
	defer f.Close()
	h := blake3.New(32, nil)
	n, err := io.Copy(h, f)
	if err != nil {
		return FileDigest{}, fmt.Errorf("hash %s: %w", path, err)
	}
	return FileDigest{Name: filepath.Base(path), Size: n, BLAKE3: fmt.Sprintf("%x", h.Sum(nil))}, nil
}
