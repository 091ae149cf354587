package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.podman.io/storage"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
)

// buildah has to copy and digest the files of every COPY before it knows that they are the same. So each image has a
// record of what it was built from, in the store among the image's own data, where it goes with the image.
const (
	builtFrom = "vers-built-from"
	// mostRecords of one image: a file that .dockerignore leaves out gives the same image a new one with every change.
	mostRecords = 16
)

// record is one build that ended in the image.
type record struct {
	Key   string    // of how it was built, and of its folder
	Names string    // of what all names in the store stood for
	At    time.Time // the newest counts
}

// key is everything that a build is given, but its limits.
func key(b wire.Build) string {
	if b.Network == "" {
		b.Network = engine.NetworkDefault
	}
	if b.Pull == "" {
		b.Pull = engine.PullMissing
	}
	b.NoCache = false
	data, _ := json.Marshal(struct { // of strings: it cannot fail
		Layout  int
		Buildah string
		Build   wire.Build
	}{1, buildahVersion(), b})
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// recallable tells a build that can be known again from one that asks registries in any case, or whose folder is unknown.
func recallable(b wire.Build) bool { return b.Inputs != "" && b.Pull != engine.PullAlways }

// recall finds the image that a build of the same made last, if every name in the store still stands for what it did:
// which of them the build used need not be known then.
func (w *worker) recall(ctx context.Context, b wire.Build) (*engine.Image, error) {
	none := fault.NotFoundf("this has not been built before, or an image in the store has changed since")
	if !recallable(b) {
		return nil, none
	}
	images, err := w.store.Images()
	if err != nil {
		return nil, err
	}
	wanted, now := key(b), digestNames(names(images))
	var newest record
	found := ""
	for _, image := range images {
		for _, r := range w.records(image) {
			if r.Key == wanted && r.At.After(newest.At) {
				newest, found = r, image.ID
			}
		}
	}
	if found == "" || newest.Names != now {
		return nil, none
	}
	image, err := w.find(found)
	if err != nil {
		return nil, err
	}
	return describe(ctx, image)
}

// records are those of one image; what cannot be read is none.
func (w *worker) records(image storage.Image) (list []record) {
	if !slices.Contains(image.BigDataNames, builtFrom) {
		return nil
	}
	data, err := w.store.ImageBigData(image.ID, builtFrom)
	if err != nil || json.Unmarshal(data, &list) != nil {
		return nil
	}
	return list
}

// remember writes down what an image was built from. before are the names as they were when the build began.
func (w *worker) remember(id string, b wire.Build, before map[string]string, log *stepLog) error {
	if !recallable(b) || log.remote {
		return nil
	}
	images, err := w.store.Images()
	if err != nil {
		return fmt.Errorf("read the names of images: %w", err)
	}
	after := names(images)
	if !steady(before, after, images) {
		return nil
	}
	image, err := w.store.Image(id)
	if err != nil {
		return fmt.Errorf("find the image that was built: %w", err)
	}
	r := record{Key: key(b), Names: digestNames(after), At: time.Now()}
	list := slices.DeleteFunc(w.records(*image), func(old record) bool { return old.Key == r.Key })
	list = append(list, r)
	data, err := json.Marshal(list[max(0, len(list)-mostRecords):])
	if err != nil {
		return err
	}
	return w.store.SetImageBigData(id, builtFrom, data, nil)
}

// names says which image each name in the store stands for.
func names(images []storage.Image) map[string]string {
	all := map[string]string{}
	for _, image := range images {
		for _, name := range image.Names {
			all[name] = image.ID
		}
	}
	return all
}

func digestNames(all map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(h, "%s %s\n", name, all[name])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// steady reports that no name changed its meaning during a build: then the build used what the names mean now. Names that
// it pulled came to be; one that never stood for another image has not changed since it came.
func steady(before, after map[string]string, images []storage.Image) bool {
	owners := map[string]int{}
	for _, image := range images {
		held := slices.Concat(image.Names, image.NamesHistory)
		slices.Sort(held)
		for _, name := range slices.Compact(held) {
			owners[name]++
		}
	}
	for name, id := range before {
		if after[name] != id {
			return false
		}
	}
	for name := range after {
		if _, old := before[name]; !old && owners[name] > 1 {
			return false
		}
	}
	return true
}

// recalled gives what a build need not make again; nil if it has to.
func (w *worker) recalled(ctx context.Context, b wire.Build, log *stepLog) (*engine.Image, error) {
	if b.NoCache {
		return nil, nil
	}
	image, err := w.recall(ctx, b)
	if fault.Is(err, fault.NotFound) || errors.Is(err, storage.ErrImageUnknown) {
		return nil, nil
	}
	if err == nil {
		fmt.Fprintf(log, "Using cache %s for all steps\n", strings.TrimPrefix(image.ID, "sha256:"))
	}
	return image, err
}
