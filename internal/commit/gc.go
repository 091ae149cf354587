package commit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"vers/internal/catalog"
	"vers/internal/disk"
)

// Collect removes what nothing needs any more. It is the only one that deletes commits, layers, flat files and the image
// files of organisations.
//
// Roots are commits that their owner has not deleted, VMs, images and leases; imports (import.go) only as long as they were
// used lately, templates only as long as an image names the file they were booted from. A commit keeps its memory base and its disk layers; a VM keeps its memory base and its layers. Flat files beyond
// the budget go by recency, never those of VMs.
// While somebody holds files that the catalogue does not name yet, it does nothing and returns false: try again later.
func (s *Store) Collect(ctx context.Context) (done bool, err error) {
	if !s.work.TryLock() {
		return false, nil
	}
	defer s.work.Unlock()
	live, err := s.mark(ctx)
	if err != nil {
		return false, err
	}
	if err := s.sweepCommits(ctx, live); err != nil {
		return false, err
	}
	if err := s.sweepLayers(ctx, live); err != nil {
		return false, err
	}
	if err := s.sweepImages(ctx); err != nil {
		return false, err
	}
	return true, s.trimFlats(ctx, live)
}

// liveSet says what stays, and for each commit and layer that goes what it stands on.
type liveSet struct {
	commits     map[string]bool // whose delta is needed
	mapped      map[string]bool // whose flat file a VM maps
	layers      map[string]bool
	deadCommits map[string]string
	deadLayers  map[string]string
}

// mark finds out what stays and what goes. Nobody gets a lease meanwhile.
func (s *Store) mark(ctx context.Context) (live liveSet, err error) {
	commits, err := s.catalog.AllCommits(ctx)
	if err != nil {
		return live, err
	}
	layers, err := s.catalog.Layers(ctx)
	if err != nil {
		return live, err
	}
	vms, err := s.catalog.AllVMs(ctx)
	if err != nil {
		return live, err
	}
	used, err := s.lastUses(ctx)
	if err != nil {
		return live, err
	}
	named, err := s.imageFiles(ctx)
	if err != nil {
		return live, err
	}
	live = liveSet{commits: map[string]bool{}, mapped: map[string]bool{}, layers: map[string]bool{},
		deadCommits: map[string]string{}, deadLayers: map[string]string{}}
	commitByID := make(map[string]catalog.Commit, len(commits))
	for _, c := range commits {
		commitByID[c.ID] = c
	}
	parents, images := make(map[string]string, len(layers)), make(map[string]string, len(layers))
	for _, l := range layers {
		parents[l.ID], images[l.ID] = l.ParentID, l.ImageFile
	}
	keepLayers := func(id string) {
		for ; id != "" && !live.layers[id]; id = parents[id] {
			live.layers[id] = true
		}
	}
	keepCommit := func(id string) {
		for c, ok := commitByID[id]; ok && !live.commits[c.ID]; c, ok = commitByID[c.MemoryBase] {
			live.commits[c.ID] = true
			keepLayers(c.LayerID)
		}
	}
	for _, v := range vms {
		keepLayers(v.LayerID)
		keepCommit(v.MemoryBase)
		live.mapped[v.MemoryBase] = true
	}
	for _, c := range commits {
		stale := isImport(c) && s.now().Sub(c.CreatedAt) > importKept && s.now().Sub(used[c.ID]) > importKept
		if file := images[c.LayerID]; isTemplate(c) && collectable(file) && !named[file] {
			stale = true // no VM will be run from it again
		}
		if !c.Deleted && !stale || s.leased(c.ID) {
			keepCommit(c.ID)
		}
	}
	for id := range parents {
		if s.leased(id) {
			keepLayers(id)
		}
	}
	for _, c := range commits {
		if !live.commits[c.ID] {
			live.deadCommits[c.ID] = c.MemoryBase
		}
	}
	for id, parent := range parents {
		if !live.layers[id] {
			live.deadLayers[id] = parent
		}
	}
	return live, nil
}

// lastUses says when the flat files of commits were used last.
func (s *Store) lastUses(ctx context.Context) (map[string]time.Time, error) {
	flats, err := s.catalog.Flats(ctx)
	used := make(map[string]time.Time, len(flats))
	for _, f := range flats {
		used[f.CommitID] = f.UsedAt
	}
	return used, err
}

func (s *Store) sweepCommits(ctx context.Context, live liveSet) error {
	for _, id := range childrenFirst(live.deadCommits) {
		if err := s.catalog.RemoveFlat(ctx, id); err != nil {
			return err
		}
		if err := s.catalog.RemoveCommit(ctx, id); err != nil {
			return err
		}
	}
	return s.sweepDir("commits", func(name string) bool { return live.commits[name] })
}

func (s *Store) sweepLayers(ctx context.Context, live liveSet) error {
	for _, id := range childrenFirst(live.deadLayers) {
		if err := s.catalog.RemoveLayer(ctx, id); err != nil {
			return err
		}
	}
	return s.sweepDir("layers", func(name string) bool {
		id, isLayer := strings.CutSuffix(name, ".qcow2")
		return isLayer && live.layers[id]
	})
}

// childrenFirst puts ids in an order in which their rows can be removed: each before what it stands on. The times in the
// rows are no help, since clocks are set back.
func childrenFirst(base map[string]string) []string {
	above := map[string]int{}
	for _, below := range base {
		above[below]++
	}
	order := make([]string, 0, len(base))
	for id := range base {
		if above[id] == 0 {
			order = append(order, id)
		}
	}
	for i := 0; i < len(order); i++ {
		below := base[order[i]]
		if above[below]--; above[below] == 0 {
			if _, goes := base[below]; goes {
				order = append(order, below)
			}
		}
	}
	return order
}

// trimFlats removes flat files of commits that are gone, and the least recently used beyond the budget.
func (s *Store) trimFlats(ctx context.Context, live liveSet) error {
	flats, err := s.catalog.Flats(ctx)
	if err != nil {
		return err
	}
	sort.Slice(flats, func(i, j int) bool { return flats[i].UsedAt.After(flats[j].UsedAt) })
	keep := map[string]bool{}
	budget := s.flatBudget
	for _, f := range flats {
		size, err := disk.Allocated(s.FlatPath(f.CommitID))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		inUse := live.mapped[f.CommitID] || s.leased(f.CommitID)
		if live.commits[f.CommitID] && (inUse || budget >= size) {
			keep[filepath.Base(s.FlatPath(f.CommitID))] = true
			if !inUse {
				budget -= size
			}
			continue
		}
		if err := s.catalog.RemoveFlat(ctx, f.CommitID); err != nil {
			return err
		}
	}
	return s.sweepDir("flats", func(name string) bool { return keep[name] })
}

// sweepDir removes every entry of a sub-directory that keep does not want: also what a crash left half made.
func (s *Store) sweepDir(sub string, keep func(name string) bool) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, sub))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if keep(e.Name()) || strings.HasPrefix(e.Name(), ".keep") {
			continue
		}
		s.log.Debug("removing", "what", sub, "name", e.Name())
		if err := os.RemoveAll(filepath.Join(s.dir, sub, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
