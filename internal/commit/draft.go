package commit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"vers/internal/catalog"
	"vers/internal/disk"
	"vers/internal/fault"
	"vers/internal/memory"
)

// Draft is a commit in the making. Nothing of it is visible until Write has returned. The order is
//
//	Begin      before the pause
//	TakeState  after the pause, while nobody can delete the VM
//	BuildFlat  after the pause, if VMs are to be started from it at once; else its flat file is made when it is needed
//	StandAlone after BuildFlat, if what the memory stands on is not to be kept for this commit
//	Write      everything on stable storage, then the catalogue row: acknowledged from here on
//	Abort      on every failing path; harmless after Write
type Draft struct {
	ID string

	store   *Store
	gid     int
	base    string // commit that the memory stands on; "" zeroes
	size    int64
	flat    bool // the flat file exists
	alone   bool // the delta is written from the flat file and needs no base
	taken   bool // the folder that becomes the commit's exists
	written bool
	release []func()
}

func (d *Draft) temp() string { return d.store.commitDir(d.ID) + ".tmp" }

// TakeState moves the device state from the folder of the VM it was captured from into the draft: the VM may be deleted
// before the commit is written.
func (d *Draft) TakeState(deviceState string) error {
	err := os.Mkdir(d.temp(), 0o700)
	if errors.Is(err, os.ErrExist) {
		return fault.Conflictf("commit '%s' is being made by another request", d.ID)
	}
	if err != nil {
		return err
	}
	d.taken = true
	if err := os.Rename(deviceState, d.temp()+"/device.state"); err != nil {
		return fmt.Errorf("move device state: %w", err)
	}
	return os.Chown(d.temp()+"/device.state", os.Geteuid(), os.Getegid())
}

// ShareState gives the device state a name that it keeps while Write moves it, until release is called.
func (d *Draft) ShareState() (path string, release func(), err error) {
	path = d.store.commitDir(d.ID) + ".state"
	hold := d.store.Hold() // beyond the draft's own: no commit has this name, and Collect would take it away
	if err := os.Link(d.temp()+"/device.state", path); err != nil {
		hold()
		return "", nil, err
	}
	return path, func() { os.Remove(path); hold() }, nil
}

// Begin starts commit id of a VM whose memory stands on commit base ("" zeroes) and whose RAM has size bytes. gid is the
// organisation's group.
func (s *Store) Begin(ctx context.Context, id, base string, size int64, gid int) (*Draft, error) {
	d := &Draft{ID: id, store: s, gid: gid, base: base, size: size}
	d.release = append(d.release, s.Hold())
	if base != "" {
		_, release, err := s.Flat(ctx, base)
		if err != nil {
			d.Abort()
			return nil, err
		}
		d.release = append(d.release, release)
	}
	return d, nil
}

func (d *Draft) basePath() string {
	if d.base == "" {
		return ""
	}
	return d.store.FlatPath(d.base)
}

// BuildFlat makes the flat file, Store.FlatPath, from its base and the captured pages.
func (d *Draft) BuildFlat(ctx context.Context, s *memory.Snapshot) error {
	flat, err := memory.NewFlat(ctx, d.store.FlatPath(d.ID), d.basePath(), d.size)
	if err != nil {
		return err
	}
	defer flat.Abort()
	if err := flat.Apply(s); err != nil {
		return err
	}
	if err := d.store.share(flat.Path(), d.gid); err != nil {
		return err
	}
	if err := flat.Finish(); err != nil {
		return err
	}
	d.flat = true
	return nil
}

// StandAlone makes Write store the whole memory, from the flat file: the commit needs no base then. It costs as much disk
// and time as the guest uses memory.
func (d *Draft) StandAlone() error {
	if !d.flat {
		return fault.New(fault.Internal, "commit %s has no flat file to stand alone with", d.ID)
	}
	d.alone, d.base = true, ""
	return nil
}

// Record is what the caller knows of the commit.
type Record struct {
	Commit   catalog.Commit // without Manifest and Durable
	Manifest Manifest       // without DeviceState, Memory, MemoryBase
	Publish  Publish        // nil: nothing else depends on the commit
}

// Publish writes more rows in the transaction that makes a commit visible: all of them are there, or none. When it fails,
// the commit is not made.
type Publish func(ctx context.Context, tx *catalog.Tx, c catalog.Commit) error

// Write makes the commit durable and then visible. The frozen top of its disk is synced here. On error the caller aborts.
func (d *Draft) Write(ctx context.Context, r Record, s *memory.Snapshot) (catalog.Commit, error) {
	c := r.Commit
	final := d.store.commitDir(d.ID)
	temp := d.temp()
	m := r.Manifest
	m.Version, m.CommitID, m.CreatedAt, m.MemoryBase = ManifestVersion, d.ID, c.CreatedAt, d.base

	var err error
	if m.Memory, err = d.writeMemory(ctx, temp+"/memory.delta", s); err != nil {
		return c, err
	}
	if m.DeviceState, err = hashFile(temp + "/device.state"); err != nil {
		return c, err
	}
	if err := disk.Sync(d.store.LayerPath(c.LayerID)); err != nil {
		return c, err
	}
	if c.Manifest, err = d.store.seal(temp, m); err != nil {
		return c, err
	}
	c.MemoryBase, c.Durable = d.base, true
	if err := d.publish(ctx, c, r.Publish); err != nil {
		os.RemoveAll(final)
		return c, err
	}
	d.written = true
	d.done()
	return c, nil
}

func (d *Draft) writeMemory(ctx context.Context, path string, s *memory.Snapshot) (memory.DeltaInfo, error) {
	if d.alone {
		return memory.WriteFlatDelta(ctx, path, d.store.FlatPath(d.ID))
	}
	return memory.WriteDelta(path, s, d.basePath())
}

// seal adds the manifest to a commit's files in the folder temp, brings everything to stable storage and gives the folder
// its name. It returns the manifest as written.
func (s *Store) seal(temp string, m Manifest) (json.RawMessage, error) {
	if err := disk.Sync(temp + "/device.state"); err != nil {
		return nil, err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if err := writeFile(temp+"/manifest.json", data, 0o600); err != nil {
		return nil, err
	}
	if err := syncDir(temp); err != nil {
		return nil, err
	}
	final := s.commitDir(m.CommitID)
	err = os.Rename(temp, final)
	if errors.Is(err, os.ErrExist) {
		return nil, fault.Conflictf("commit '%s' exists already", m.CommitID)
	}
	if err != nil {
		return nil, err
	}
	if err := syncDir(s.dir + "/commits"); err != nil {
		os.RemoveAll(final)
		return nil, err
	}
	return data, nil
}

// publish writes the rows that make a commit visible.
func (d *Draft) publish(ctx context.Context, c catalog.Commit, more Publish) error {
	return d.store.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if err := tx.InsertCommit(ctx, c); err != nil {
			return err
		}
		if more != nil {
			if err := more(ctx, tx, c); err != nil {
				return err
			}
		}
		if !d.flat {
			return nil
		}
		return tx.PutFlat(ctx, catalog.Flat{CommitID: c.ID, BootID: d.store.bootID, UsedAt: d.store.now()})
	})
}

// Abort removes what was made, unless Write succeeded.
func (d *Draft) Abort() {
	if d.taken && !d.written {
		os.RemoveAll(d.temp())
	}
	if d.flat && !d.written {
		os.Remove(d.store.FlatPath(d.ID))
		d.flat = false
	}
	d.done()
}

func (d *Draft) done() {
	for i := len(d.release) - 1; i >= 0; i-- {
		d.release[i]()
	}
	d.release = nil
}
