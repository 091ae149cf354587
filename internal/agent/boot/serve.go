package boot

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/agent"
	"vers/internal/guest"
)

// Descriptors that the first process passes to the agent.
const (
	listenerFD = 3
	decidedFD  = 4
)

// Serve is the agent proper: the process that answers versd. It returns only on failure.
func Serve(version string) error {
	unix.CloseOnExec(listenerFD)
	unix.CloseOnExec(decidedFD)
	// A shutdown script of the image kills everything; the agent goes with the machine.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	go func() {
		for range signals { // noted and left at that
		}
	}()
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	file := os.NewFile(listenerFD, "listener")
	l, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("take the listener over: %w", err)
	}
	_ = file.Close()
	start := &startUp{log: logger}
	server := agent.New(agent.Config{
		Version: version, System: agent.Kernel{}, Logger: logger, Status: start.status,
		OOMProtected: true, Budget: outputBudget(),
	})
	start.rehearse = server.Rehearse
	go start.follow(os.NewFile(decidedFD, "decided"))
	return server.Serve(context.Background(), l)
}

// outputBudget is how much memory kept output may take: up to 32 MiB, less in a small guest.
func outputBudget() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return min(32<<20, int64(info.Totalram)*int64(info.Unit)/16)
}

// startUp is how far the guest has come.
type startUp struct {
	log      *slog.Logger
	rehearse func() error // called once, before the guest is ready

	mu    sync.Mutex
	ready bool
	kind  string
	path  string
}

func (s *startUp) status() (ready bool, kind, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready, s.kind, s.path
}

func (s *startUp) set(kind, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kind, s.path = kind, path
}

func (s *startUp) setReady() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = true
}

// follow learns what the first process has become. It writes the path of each init before it tries it, and a line end
// when that failed or when there is none; the end of the pipe means that it has become something, or stays.
func (s *startUp) follow(decided *os.File) {
	data, err := io.ReadAll(decided)
	_ = decided.Close()
	if err != nil {
		s.log.Warn("cannot learn what the first process is", "error", err)
	}
	path := string(data[strings.LastIndexByte(string(data), '\n')+1:])
	if path == "" {
		s.set(guest.MainReaper, "")
	} else {
		s.set(guest.MainInit, path)
		s.awaitInit(path)
	}
	if err := s.rehearse(); err != nil {
		s.log.Warn("no passing identity", "error", err)
	}
	s.setReady()
}

// awaitInit waits until the image's init has started the guest, where it can be asked.
func (s *startUp) awaitInit(path string) {
	if target, err := filepath.EvalSymlinks(path); err == nil && filepath.Base(target) == "systemd" {
		if err := waitForSystemd(); err != nil {
			s.log.Warn("systemd has not finished its start", "error", err)
		}
	}
}

const (
	systemdLimit  = 2 * time.Minute
	systemdPoll   = 100 * time.Millisecond
	systemdSocket = "/run/systemd/private"
)

// waitForSystemd waits until systemd has started everything, or given up on some of it. After a limit the guest counts
// as ready all the same: a unit that waits for something that never comes must not make a VM unusable.
func waitForSystemd() error {
	ctx, cancel := context.WithTimeout(context.Background(), systemdLimit)
	defer cancel()
	tick := time.NewTicker(systemdPoll)
	defer tick.Stop()
	for !exists(systemdSocket) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("no %s: %w", systemdSocket, ctx.Err())
		}
	}
	out, err := exec.CommandContext(ctx, "systemctl", "is-system-running", "--wait").Output()
	if state := strings.TrimSpace(string(out)); state == "running" || state == "degraded" {
		return nil
	}
	return fmt.Errorf("its state is %q: %w", strings.TrimSpace(string(out)), err)
}
