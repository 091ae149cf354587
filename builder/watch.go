package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

const (
	watchEvery = 200 * time.Millisecond
	// A build that can start no process for this long will not end by itself.
	forkPatience = 5 * time.Second
	// leaveFree is what a build leaves of the file system that it is on, whatever its own limit is.
	leaveFree = 256 << 20
)

// watchProcesses ends a build that hangs at its limit of processes: a fork bomb does not end by itself.
func (r *run) watchProcesses(stop <-chan struct{}) {
	if r.group.pids == "" || r.start.Limits.Processes <= 0 {
		return
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var since time.Time
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		switch full := r.group.full(); {
		case !full:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > forkPatience:
			r.end(fault.Exhaustedf("the build was ended: its steps had %d processes, the limit (processes in [builder]), for %s",
				r.start.Limits.Processes, forkPatience))
			return
		}
	}
}

// watchDisk ends a build that wrote more than it may, or that fills the file system. Free space is looked at often;
// only when that has changed much, what the build itself has is counted.
func (r *run) watchDisk(stop <-chan struct{}) {
	limit := r.start.Limits.DiskMiB << 20
	storage := filepath.Join(storeDir(r.start.Dir, r.start.Store), "storage")
	before := layers(storage)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	counted, free, when := int64(0), freeBytes(storage), time.Now()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		now := freeBytes(storage)
		if now < leaveFree && now < free {
			r.end(fault.Exhaustedf("the build was ended: it left only %d MiB of the disk with %s free", now>>20, r.start.Dir))
			return
		}
		if limit <= 0 || free-now < (limit-counted)/2 && time.Since(when) < 20*time.Second {
			continue
		}
		begin := time.Now()
		counted = used(filepath.Join(r.dir, "tmp"))
		for name := range layers(storage) {
			if !before[name] {
				counted += used(filepath.Join(storage, "overlay", name))
			}
		}
		if counted > limit {
			r.end(fault.Exhaustedf("the build was ended: it wrote %d MiB, and %d MiB is the limit (disk_mib in [builder])", counted>>20, limit>>20))
			return
		}
		free, when = now, time.Now()
		// Counting many files takes its time; most of the time is the build's.
		wait := time.NewTimer(4 * when.Sub(begin))
		select {
		case <-stop:
			wait.Stop()
			return
		case <-wait.C:
		}
	}
}

// layers are the names of a store's layers and working containers' files.
func layers(storage string) map[string]bool {
	names := map[string]bool{}
	entries, _ := os.ReadDir(filepath.Join(storage, "overlay"))
	for _, entry := range entries {
		names[entry.Name()] = true
	}
	return names
}

func freeBytes(path string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return 1 << 62
	}
	return int64(st.Bavail) * st.Bsize
}

// used is the space of all files below a folder, in bytes.
func used(folder string) int64 {
	total := int64(0)
	_ = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went while we looked
		}
		var st unix.Stat_t
		if entry.Type().IsRegular() && unix.Lstat(path, &st) == nil {
			total += st.Blocks * 512
		}
		return nil
	})
	return total
}
