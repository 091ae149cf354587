package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/config"
	"vers/internal/machine"
)

// Wait returns when versd answers on its socket (or its address, if it has no socket).
func Wait(ctx context.Context, c config.Server) error {
	network, address := "unix", c.Socket
	if address == "" {
		network, address = "tcp", c.Listen
	}
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("versd does not answer on %s: %w", address, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Stop ends the versd of a data directory, if one runs, and waits until it is gone. With all, its VMs end too; commits
// stay. VMs that are ended this way are dead and can only be deleted.
func Stop(ctx context.Context, c config.Server, all bool, progress io.Writer) error {
	path := filepath.Join(c.DataDir, "versd.lock")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(progress, "no versd has run on %s\n", c.DataDir)
		return nil
	}
	lock := flock.New(path)
	got, err := lock.TryLock()
	if err != nil {
		return err
	}
	if !got {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			return fmt.Errorf("%s does not hold a pid: %w", path, err)
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end versd (pid %d): %w", pid, err)
		}
		if _, err := lock.TryLockContext(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("versd (pid %d) does not end: %w", pid, err)
		}
		fmt.Fprintf(progress, "versd (pid %d) has ended\n", pid)
	}
	defer lock.Close()
	if !all {
		return nil
	}
	return endVMs(ctx, c, progress)
}

// endVMs ends the processes of all VMs of a data directory that no versd owns; those that sleep sleep on. The caller holds
// the lock.
func endVMs(ctx context.Context, c config.Server, progress io.Writer) error {
	cat, err := catalog.Open(ctx, filepath.Join(c.DataDir, "catalog.db"))
	if err != nil {
		return err
	}
	defer cat.Close()
	vms, err := cat.AllVMs(ctx)
	if err != nil {
		return err
	}
	ended := 0
	for _, v := range vms {
		var p machine.Process
		if v.State == string(machine.StateDead) || len(v.Process) == 0 || json.Unmarshal(v.Process, &p) != nil {
			continue
		}
		gone, err := p.Kill(ctx)
		if err != nil {
			return fmt.Errorf("end VM %s: %w", v.ID, err)
		}
		if gone {
			ended++
		}
		if v.State == string(machine.StateSleeping) {
			continue // what it is, is on disk; the process was left of falling asleep or waking
		}
		if err := cat.SetVMState(ctx, v.ID, string(machine.StateDead), "ended by versd stop --all"); err != nil {
			return err
		}
	}
	fmt.Fprintf(progress, "%d VMs ended\n", ended)
	return nil
}

// Verify reads commits again and compares them with their manifests; without ids, all of them.
func Verify(ctx context.Context, c config.Server, ids []string, progress io.Writer) error {
	cat, err := catalog.Open(ctx, filepath.Join(c.DataDir, "catalog.db"))
	if err != nil {
		return err
	}
	defer cat.Close()
	store, err := commit.Open(commit.Options{Dir: c.DataDir, Catalog: cat, Logger: discardLogger()})
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		commits, err := cat.AllCommits(ctx)
		if err != nil {
			return err
		}
		for _, c := range commits {
			if !c.Deleted {
				ids = append(ids, c.ID)
			}
		}
	}
	var failures []error
	verifier := store.Verifier()
	for _, id := range ids {
		if err := verifier.Verify(ctx, id); err != nil {
			failures = append(failures, err)
			continue
		}
		fmt.Fprintf(progress, "%s good\n", id)
	}
	return errors.Join(failures...)
}
