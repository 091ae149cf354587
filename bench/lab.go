package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"vers/internal/catalog"
	"vers/internal/config"
	"vers/internal/daemon"
	"vers/internal/guest"
	"vers/internal/image/imagetest"
	"vers/internal/machine"
	"vers/internal/memory"
)

// lab is a versd in this process, with a data directory of its own.
type lab struct {
	dir    string
	daemon *daemon.Daemon
	m      *machine.Manager
	caller machine.Caller
	host   machine.Host
	memory string // of the host, for the report
	log    *os.File
}

func newLab(ctx context.Context) (_ *lab, err error) {
	base, err := imagetest.Base(ctx)
	if err != nil {
		return nil, err
	}
	l := &lab{}
	// Beside the base: hard links, and the disk that users would measure on.
	if l.dir, err = os.MkdirTemp(filepath.Dir(base), "bench."); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	data := filepath.Join(l.dir, "data")
	if out, err := exec.CommandContext(ctx, "cp", "-al", base, data).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy the base: %w: %s", err, out)
	}
	if err := errors.Join(os.Chmod(l.dir, 0o711), os.Chmod(data, 0o711)); err != nil {
		return nil, err
	}
	if l.log, err = os.Create(filepath.Join(l.dir, "log")); err != nil {
		return nil, err
	}
	c := config.DefaultServer()
	c.DataDir, c.Socket, c.Listen = data, filepath.Join(l.dir, "versd.sock"), ""
	c.Gateway.Listen, c.Gateway.SSH = "", ""
	l.daemon, err = daemon.Open(ctx, daemon.Options{Config: c, Logger: slog.New(slog.NewTextHandler(l.log, nil)), Progress: os.Stderr})
	if err != nil {
		return nil, err
	}
	l.m, l.host = l.daemon.Manager(), l.daemon.Manager().Driver.Host()
	l.memory = hostMemory()
	l.caller, err = l.daemon.LocalCaller(ctx)
	return l, err
}

func hostMemory() string {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "memory unknown"
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.Join(strings.Fields(line), " ")
}

func (l *lab) close() error {
	ctx := context.Background()
	var errs []error
	if l.daemon != nil {
		if l.m != nil {
			errs = append(errs, l.deleteVMs(ctx))
		}
		errs = append(errs, l.daemon.Close())
	}
	if l.log != nil {
		l.log.Close()
	}
	return errors.Join(append(errs, os.RemoveAll(l.dir))...)
}

func (l *lab) deleteVMs(ctx context.Context) error {
	vms, err := l.m.List(ctx, l.caller)
	return errors.Join(err, deleteAll(ctx, l, vms))
}

func deleteAll(ctx context.Context, l *lab, vms []machine.VM) (err error) {
	for _, v := range vms {
		err = errors.Join(err, l.m.Delete(ctx, l.caller, v.ID, false))
	}
	return err
}

// run makes a root VM and waits until commands can run.
func (l *lab) run(ctx context.Context, memMiB int64, cold bool) (machine.VM, error) {
	return l.m.Run(ctx, l.caller, machine.RunRequest{Config: catalog.VMConfig{MemSizeMiB: memMiB}, WaitBoot: true, Cold: cold})
}

// exec runs a shell line in a VM.
func (l *lab) exec(ctx context.Context, vmID, script string) error {
	client, err := l.m.Guest(ctx, l.caller, vmID)
	if err != nil {
		return err
	}
	return execIn(ctx, client, script)
}

func execIn(ctx context.Context, client *guest.Client, script string) error {
	stream, err := client.Exec(ctx, guest.ExecRequest{Command: []string{"sh", "-c", script}})
	if err != nil {
		return err
	}
	defer stream.Close()
	var said []byte
	for {
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		said = append(said, event.Data...)
		if event.Type == guest.EventExit {
			if event.ExitCode != 0 {
				return fmt.Errorf("%s: exit %d: %s", script, event.ExitCode, said)
			}
			return nil
		}
	}
}

// touch makes the guest write to that much memory, with data that is not zero.
func touch(mib int) string {
	return fmt.Sprintf("mount -o remount,size=90%% /dev/shm && yes vers | head -c %dM > /dev/shm/touched", mib)
}

// moments are when an operation reached what, from its beginning.
type moments struct {
	mu    sync.Mutex
	began time.Time
	first map[string]time.Duration // by moment
	last  map[string]time.Duration
}

func watched(ctx context.Context) (context.Context, *moments) {
	m := &moments{began: time.Now(), first: map[string]time.Duration{}, last: map[string]time.Duration{}}
	return machine.WithTrace(ctx, func(_, moment string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		at := time.Since(m.began)
		if _, ok := m.first[moment]; !ok {
			m.first[moment] = at
		}
		m.last[moment] = at
	}), m
}

// private gives the bytes of guest memory that a VM has for itself, and the whole process's proportional set size.
func (l *lab) private(vm machine.VM) (guestBytes, pss int64, err error) {
	var p machine.Process
	if err := json.Unmarshal(vm.Process, &p); err != nil {
		return 0, 0, err
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", p.PID))
	if err != nil {
		return 0, 0, err
	}
	want := vm.Config.MemSizeMiB << 20
	for _, line := range strings.Split(string(data), "\n") {
		var low, high uintptr
		var kib int64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &low, &high); n == 2 && int64(high-low) == want {
			if guestBytes, err = memory.PrivateBytes(p.PID, low, want); err != nil {
				return 0, 0, err
			}
		}
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 {
			pss += kib << 10
		}
	}
	return guestBytes, pss, nil
}
