package enginetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

// until is a writer that closes seen when it has been told a text.
type until struct {
	text string
	mu   sync.Mutex
	log  strings.Builder
	once sync.Once
	seen chan struct{}
}

func newUntil(text string) *until { return &until{text: text, seen: make(chan struct{})} }

func (u *until) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.log.Write(p)
	if strings.Contains(u.log.String(), u.text) {
		u.once.Do(func() { close(u.seen) })
	}
	return len(p), nil
}

// cancel: everything has ended when the call returns (Run compares what there is), and the next build works.
func (s *suite) cancel(t *testing.T) {
	if !s.capabilities.Cancel {
		t.Skip("this engine does not end steps that run; its notes say so")
	}
	for _, how := range []string{"cancel", "deadline"} {
		ctx, cancel := context.WithCancel(soon(t))
		log := newUntil("run" + "ning")
		result := make(chan error, 1)
		go func() {
			_, _, err := s.run(ctx, t, "FROM "+baseName+"\nRUN touch /x\nRUN (setsid sleep 1000 &) ; echo run''ning; sleep 1000\n", func(b *engine.Build) { b.Log = log })
			result <- err
		}()
		select {
		case <-log.seen:
		case err := <-result:
			t.Fatalf("%v\n%s", err, log.log.String())
		}
		begin := time.Now()
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", how, err)
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("%s took %s", how, took)
		}
	}
	ctx, cancel := context.WithTimeout(soon(t), 3*time.Second)
	defer cancel()
	if _, _, err := s.run(ctx, t, "FROM "+baseName+"\nRUN sleep 1000\n", nil); !fault.Is(err, fault.Timeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a deadline: %v", err)
	}
	s.works(t)
}

// works is a build after something went wrong.
func (s *suite) works(t *testing.T) {
	t.Helper()
	if image, log, err := s.run(soon(t), t, "FROM "+baseName+"\nRUN echo fine > /fine\n", func(b *engine.Build) { b.NoCache = true }); err != nil {
		t.Errorf("the next build: %v\n%s", err, log)
	} else {
		expect(t, s.tree(t, image), "/fine", "fine\n")
	}
}

// memory: a step that needs more than it may is killed, and the host goes on.
func (s *suite) memory(t *testing.T) {
	if !s.capabilities.Memory {
		t.Skip("this engine limits no memory on this host; its notes say so")
	}
	_, log, err := s.run(soon(t), t, "FROM "+baseName+"\nRUN tail /dev/zero\n", func(b *engine.Build) { b.Limits.MemoryMiB = 64 })
	var step *engine.StepError
	if !errors.As(err, &step) || step.Code != 137 {
		t.Fatalf("%v\n%s", err, log)
	}
	s.works(t)
}

func (s *suite) limits(t *testing.T) {
	if !s.capabilities.Limits {
		t.Skip("this engine limits no processes and no disk space; its notes say so, and it refuses to")
	}
	for _, test := range []struct {
		name, step string
		limits     engine.Limits
		message    string
	}{
		{"memory", "tail /dev/zero", engine.Limits{MemoryMiB: 64}, "memory"},
		{"processes", "while :; do sleep 1000 & done", engine.Limits{Processes: 64}, "processes"},
		{"processes that stay", "(while :; do sleep 1000 & done) & exec sleep 1000", engine.Limits{Processes: 64}, "processes"},
		{"disk", "dd if=/dev/zero of=/big bs=1M count=100000", engine.Limits{DiskMiB: 128}, "MiB"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, log, err := s.run(soon(t), t, "FROM "+baseName+"\nRUN "+test.step+"\n", func(b *engine.Build) { b.Limits = test.limits })
			if !fault.Is(err, fault.Exhausted) {
				t.Fatalf("%v\n%s", err, log)
			}
			contains(t, err, test.message)
			s.works(t)
		})
	}
}

// isolation: a Dockerfile reaches neither the host's files nor its services.
func (s *suite) isolation(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("top secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, step := range map[string]string{
		"read":        "RUN cat " + secret,
		"bind mount":  "RUN --mount=type=bind,source=/,target=/host cat /host" + secret,
		"bind parent": "RUN --mount=type=bind,source=../../../../../..,target=/host cat /host" + secret,
		"copy":        "COPY ../../../../../../.." + secret + " /x",
		"process":     "RUN cat /proc/1/root" + secret,
		"device":      "RUN mknod /disk b 8 0 && head -c 512 /disk",
		"mount":       "RUN mkdir /m && mount -t tmpfs tmpfs /m",
		"insecure":    "RUN --security=insecure mkdir /m && mount -t tmpfs tmpfs /m",
		"kernel":      "RUN echo x > /proc/sys/kernel/hostname",
	} {
		_, log, err := s.run(soon(t), t, "FROM "+baseName+"\n"+step+"\n", nil)
		if err == nil || strings.Contains(log, "top secret") {
			t.Errorf("%s: %v\n%s", name, err, log)
		}
	}
	if s.capabilities.NoNetwork {
		s.network(t)
	}
}

// network: listeners on the host's loopback and on its own addresses are out of reach.
func (s *suite) network(t *testing.T) {
	var accepted sync.Map
	for _, address := range append([]string{"127.0.0.1"}, hostAddresses(t)...) {
		listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				accepted.Store(address, true)
				_ = conn.Close()
			}
		}()
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		for _, flag := range []string{"", "--network=host ", "--network=none "} {
			networks := []engine.Network{engine.NetworkNone}
			if s.capabilities.Egress {
				networks = append(networks, engine.NetworkDefault)
			}
			for _, network := range networks {
				step := fmt.Sprintf("RUN %snc -w 3 %s %s </dev/null", flag, address, port)
				if _, log, err := s.run(soon(t), t, "FROM "+baseName+"\n"+step+"\n", func(b *engine.Build) { b.Network = network }); err == nil {
					t.Errorf("network %s: %s reached the host\n%s", network, step, log)
				}
			}
		}
		if !s.capabilities.Egress {
			continue
		}
		if _, _, err := s.run(soon(t), t, "FROM "+baseName+"\nADD http://"+listener.Addr().String()+"/x /x\n", nil); err == nil {
			t.Errorf("ADD from %s succeeded", address)
		}
	}
	accepted.Range(func(address, _ any) bool {
		t.Errorf("somebody reached the listener on %s", address)
		return true
	})
	image, log := s.build(t, "FROM "+baseName+"\nRUN ls /sys/class/net > /cards\n", func(b *engine.Build) { b.Network, b.NoCache = engine.NetworkNone, true })
	if cards := s.tree(t, image)["/cards"].content; strings.Contains(cards, "eth0") || !strings.Contains(cards, "lo") {
		t.Errorf("cards without network: %q\n%s", cards, log)
	}
}

// hostAddresses are the host's own, but those of loopback.
func hostAddresses(t *testing.T) []string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, address := range addresses {
		if ip, ok := address.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			list = append(list, ip.IP.String())
		}
	}
	return list
}
