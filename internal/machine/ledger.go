package machine

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"vers/internal/catalog"
	"vers/internal/fault"
)

// ledger accounts for host memory, and for what organisations use of their quotas. A VM is booked with all its RAM before
// it starts, although clones share pages: so no sequence of writes in any guest can drive the host out of memory (with an
// overcommit factor of 1).
type ledger struct {
	mu       sync.Mutex
	capacity int64
	booked   map[string]booking
	pending  map[string]int64 // by organisation: bytes of commits that are being written
}

// booking is what a VM holds while it is not dead.
type booking struct {
	bytes     int64 // of host memory
	orgID     string
	vcpus     int64
	memoryMiB int64 // that the guest has
}

func newLedger(capacity int64) *ledger {
	return &ledger{capacity: capacity, booked: map[string]booking{}, pending: map[string]int64{}}
}

func (l *ledger) used() (total int64) {
	for _, b := range l.booked {
		total += b.bytes
	}
	return total
}

// book reserves each for every one of the ids, or nothing. The error says what was asked and what is free.
func (l *ledger) book(each booking, q catalog.Quotas, ids ...string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.room(each, q, int64(len(ids))); err != nil {
		return err
	}
	for _, id := range ids {
		l.booked[id] = each
	}
	return nil
}

// room refuses n more VMs that the quotas or the host's memory have no room for. The caller holds mu.
func (l *ledger) room(each booking, q catalog.Quotas, n int64) error {
	if err := l.withinQuotas(each, q, n); err != nil {
		return err
	}
	used := l.used()
	want := each.bytes * n
	if free := l.capacity - used; want > free {
		return fault.Exhaustedf("Insufficient system resources: asked for %d MiB of memory (%d × %d MiB with the VM's own overhead), %d MiB are free of %d MiB for VMs (%d VMs hold the rest); ask for less, or delete VMs",
			want>>20, n, each.bytes>>20, max(free, 0)>>20, l.capacity>>20, l.holders())
	}
	return nil
}

// rebook lets a VM hold each instead of what it holds, or leaves it as it is. It counts as a VM already.
func (l *ledger) rebook(id string, each booking, q catalog.Quotas) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, had := l.booked[id]
	delete(l.booked, id)
	q.VMs = nil
	if err := l.room(each, q, 1); err != nil {
		if had {
			l.booked[id] = before
		}
		return err
	}
	l.booked[id] = each
	return nil
}

// holders counts the VMs that hold memory: those that sleep do not. The caller holds mu.
func (l *ledger) holders() (n int) {
	for _, b := range l.booked {
		if b.bytes > 0 {
			n++
		}
	}
	return n
}

// note books what runs already, whatever the capacity and the quotas.
func (l *ledger) note(id string, b booking) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.booked[id] = b
}

func (l *ledger) release(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.booked, id)
}

// HostMemory gives the host's memory in bytes, or the control group's limit if that is lower.
func HostMemory() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read the host's memory size: %w", err)
	}
	defer f.Close()
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		fields := strings.Fields(scan.Text())
		if len(fields) >= 2 && fields[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the host's memory size: %w", err)
			}
			total := kib << 10
			if limit, ok := cgroupMemoryLimit(); ok && limit < total {
				total = limit
			}
			return total, nil
		}
	}
	return 0, fmt.Errorf("read the host's memory size: no MemTotal in /proc/meminfo")
}

func cgroupMemoryLimit() (int64, bool) {
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil && n > 0 {
			return n, true
		}
	}
	return 0, false
}
