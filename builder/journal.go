package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
)

// The engine's folder:
//
//	run/ID/        one worker: lock, store (the store's name), network sockets, temporary files
//	stores/NAME/   one organisation: storage (images and layers), cache (of RUN --mount=type=cache)
//	sweep.lock     held while something is swept

func storeDir(dir, store string) string { return filepath.Join(dir, "stores", store) }

// journal makes the run's folder, and takes its lock before the folder can be seen under its name.
func (r *run) journal() error {
	name := r.start.Store
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return fault.Invalidf("%q is no name for a store of images", name)
	}
	for _, dir := range []string{filepath.Join(r.start.Dir, "run"), storeDir(r.start.Dir, name) + "/storage", storeDir(r.start.Dir, name) + "/cache"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the container engine's folder: %w", err)
		}
	}
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	r.id = hex.EncodeToString(random)
	making := filepath.Join(r.start.Dir, "run", "."+r.id)
	for _, dir := range []string{"", "root", "tmp", "net-worker", "net-steps"} {
		if err := os.Mkdir(filepath.Join(making, dir), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(making, "store"), []byte(name), 0o600); err != nil {
		return err
	}
	lock, err := tryLock(filepath.Join(making, "lock"))
	if err != nil {
		return err
	}
	dir := filepath.Join(r.start.Dir, "run", r.id)
	if err := os.Rename(making, dir); err != nil {
		_ = lock.Close()
		return err
	}
	r.dir, r.lock = dir, lock
	return nil
}

var errLocked = errors.New("somebody has the lock")

// tryLock takes a lock that ends with the process.
func tryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, err
	}
	return file, nil
}

// sweep removes what killed supervisors left. Their workers are gone: the kernel kills them with their supervisor.
func sweep(dir string) error {
	entries, err := os.ReadDir(filepath.Join(dir, "run"))
	if errors.Is(err, fs.ErrNotExist) || len(entries) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for what killed builds left: %w", err)
	}
	lock, err := tryLock(filepath.Join(dir, "sweep.lock"))
	if errors.Is(err, errLocked) {
		return nil // somebody is at it
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	dead := map[string][]string{} // by store
	var held []*os.File
	defer func() {
		for _, file := range held {
			_ = file.Close()
		}
	}()
	for _, entry := range entries {
		folder := filepath.Join(dir, "run", entry.Name())
		lock, err := tryLock(filepath.Join(folder, "lock"))
		if err != nil {
			continue // it lives, or has gone by itself
		}
		held = append(held, lock)
		store, _ := os.ReadFile(filepath.Join(folder, "store"))
		dead[string(store)] = append(dead[string(store)], entry.Name())
	}
	return sweepDead(dir, dead)
}

func sweepDead(dir string, dead map[string][]string) error {
	var errs []error
	for store, ids := range dead {
		if _, err := os.Stat(storeDir(dir, store)); store != "" && err == nil {
			if err := cleanStore(dir, store, ids); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		for _, id := range ids {
			(&group{name: groupName(dir, strings.TrimPrefix(id, "."))}).remove()
			errs = append(errs, os.RemoveAll(filepath.Join(dir, "run", id)))
		}
	}
	return errors.Join(errs...)
}

// cleanStore has a worker remove the working containers of ended runs. It needs no network.
func cleanStore(dir, store string, ids []string) error {
	r := &run{start: wire.Start{Dir: dir, Store: store, Network: engine.NetworkNone}, group: &group{}}
	if err := r.journal(); err != nil {
		return err
	}
	defer func() {
		_ = os.RemoveAll(r.dir)
		_ = r.lock.Close()
	}()
	space, err := newNamespace()
	if err != nil {
		return err
	}
	defer space.close()
	r.worker = &network{space: space}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	config, err := json.Marshal(surroundings{Start: r.start, ID: r.id, RunDir: r.dir, Program: program})
	if err != nil {
		return err
	}
	return r.clean(config, ids)
}

// clean asks the worker to remove working containers, in the place of a client.
func (r *run) clean(config []byte, ids []string) error {
	requests, ask, err := os.Pipe()
	if err != nil {
		return err
	}
	answer, replies, err := os.Pipe()
	if err != nil {
		_, _ = requests.Close(), ask.Close()
		return err
	}
	defer answer.Close()
	conn := wire.NewConn(answer, ask)
	if err := conn.Send(wire.Request{Clean: &wire.Clean{IDs: ids}}); err != nil {
		return err
	}
	_ = ask.Close()
	err = r.runWorker(config, requests, replies)
	_, _ = requests.Close(), replies.Close()
	if err != nil {
		return err
	}
	_, content, err := conn.Next()
	if err != nil {
		return err
	}
	var reply wire.Reply
	if err := json.Unmarshal(content, &reply); err != nil {
		return err
	}
	return reply.Err.Unpack()
}
