package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ramAddress finds where guest RAM is in the process. QEMU says where guest-physical address 0 is; /proc says whether
// that is a private mapping of the right size (and file). Neither alone is enough to read another process by.
func (i *Instance) ramAddress(ctx context.Context) (uintptr, error) {
	i.mu.Lock()
	address := i.address
	i.mu.Unlock()
	if address != 0 {
		return address, nil
	}
	var said string
	if err := i.command(ctx, "human-monitor-command", map[string]any{"command-line": "gpa2hva 0"}, &said); err != nil {
		return 0, err
	}
	address, err := parseHostAddress(said)
	if err != nil {
		return 0, err
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", i.process.id.PID))
	if err != nil {
		return 0, fmt.Errorf("read the mappings of VM %s: %w", i.spec.ID, err)
	}
	if err := i.checkRAM(maps, address); err != nil {
		return 0, fmt.Errorf("find the memory of VM %s at %#x: %w", i.spec.ID, address, err)
	}
	i.mu.Lock()
	i.address = address
	i.mu.Unlock()
	return address, nil
}

// hostAddress: "Host virtual address for 0x0 (ram) is 0x7f0123400000".
var hostAddress = regexp.MustCompile(`^Host virtual address for 0x0+ \((\S+)\) is 0x([0-9a-f]+)\s*$`)

func parseHostAddress(said string) (uintptr, error) {
	parts := hostAddress.FindStringSubmatch(said)
	if parts == nil || !strings.HasSuffix(parts[1], ramObject) {
		return 0, fmt.Errorf("QEMU does not say where guest RAM is: %q", said)
	}
	address, err := strconv.ParseUint(parts[2], 16, 64)
	if err != nil {
		return 0, fmt.Errorf("QEMU does not say where guest RAM is: %w", err)
	}
	return uintptr(address), nil
}

// mapping is one line of /proc/<pid>/maps.
type mapping struct {
	start, end   uintptr
	private      bool
	offset       uint64
	major, minor uint64
	inode        uint64
}

func parseMapping(line string) (m mapping, err error) {
	var permissions string
	_, err = fmt.Sscanf(line, "%x-%x %s %x %x:%x %d", &m.start, &m.end, &permissions, &m.offset, &m.major, &m.minor, &m.inode)
	if err != nil || len(permissions) != 4 {
		return m, fmt.Errorf("read a mapping %q: unknown form", line)
	}
	m.private = permissions[3] == 'p'
	return m, nil
}

// checkRAM verifies that guest RAM lies at address without a gap, privately, and is the memory file if there is one.
func (i *Instance) checkRAM(maps []byte, address uintptr) error {
	var file unix.Stat_t
	if i.spec.MemoryFile != "" {
		if err := unix.Stat(i.spec.MemoryFile, &file); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	end := address + uintptr(i.spec.Hardware.MemoryBytes)
	at := address
	for lines := bufio.NewScanner(bytes.NewReader(maps)); at < end && lines.Scan(); {
		m, err := parseMapping(lines.Text())
		if err != nil {
			return err
		}
		if m.end <= at {
			continue
		}
		switch {
		case m.start > at:
			return fmt.Errorf("there is a gap at %#x", at)
		case !m.private:
			return errors.New("it is shared with other processes")
		case i.spec.MemoryFile == "" && m.inode != 0:
			return errors.New("a file is mapped there")
		case file.Ino != 0 && m.inode != file.Ino:
			return fmt.Errorf("it is not a mapping of %s", i.spec.MemoryFile)
		case i.spec.MemoryFile != "" && uint64(at-address) != m.offset+uint64(at-m.start):
			return fmt.Errorf("%s is mapped there from another offset", i.spec.MemoryFile)
		}
		at = m.end
	}
	if at < end {
		return errors.New("the mapping is too small")
	}
	return nil
}
