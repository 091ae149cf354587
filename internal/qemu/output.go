package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// logLimit bounds qemu.log. What QEMU says beyond it is read and dropped.
const logLimit = 256 << 10

// output takes what QEMU prints. QEMU writes into a FIFO that it never waits for: when versd is away, the kernel keeps
// the first 64 KiB and drops the rest. The machine's directory belongs to QEMU's user, so nothing in it is followed.
type output struct {
	fifo *os.File
	file *os.File
	done chan struct{}

	mu   sync.Mutex
	size int64
	last []byte // the newest part, for error messages
}

const outputKept = 2 << 10

// newOutput makes the FIFO and the log, anew, and gives a descriptor for QEMU's end that the caller closes.
func newOutput(dir string) (*output, int, error) {
	for _, name := range []string{"qemu.out", "qemu.log"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, -1, fmt.Errorf("remove an old log: %w", err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "qemu.out"), 0o600); err != nil {
		return nil, -1, fmt.Errorf("make the FIFO for QEMU's output: %w", err)
	}
	o, err := openOutput(dir)
	if err != nil {
		return nil, -1, err
	}
	end, err := openFIFO(dir)
	if err != nil {
		o.close()
		return nil, -1, err
	}
	return o, end, nil
}

// openFIFO opens for reading and writing: QEMU then neither waits for a reader nor is killed for lack of one.
func openFIFO(dir string) (int, error) {
	path := filepath.Join(dir, "qemu.out")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return -1, fmt.Errorf("open %s: it is no FIFO", path)
	}
	return fd, nil
}

// openOutput continues to read what a QEMU says that was started earlier.
func openOutput(dir string) (*output, error) {
	fd, err := openFIFO(dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "qemu.log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open QEMU's log: %w", err)
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		unix.Close(fd)
		file.Close()
		return nil, fmt.Errorf("open QEMU's log: %s is no regular file", path)
	}
	o := &output{fifo: os.NewFile(uintptr(fd), "qemu.out"), file: file, done: make(chan struct{}), size: info.Size()}
	go o.pump()
	return o, nil
}

func (o *output) pump() {
	defer close(o.done)
	buf := make([]byte, 4096)
	for {
		n, err := o.fifo.Read(buf)
		o.keep(buf[:n])
		if err != nil {
			return // closed
		}
	}
}

func (o *output) keep(data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = append(o.last, data...)
	if len(o.last) > outputKept {
		o.last = append([]byte(nil), o.last[len(o.last)-outputKept:]...)
	}
	if room := logLimit - o.size; int64(len(data)) > room {
		data = data[:max(room, 0)]
	}
	n, _ := o.file.Write(data) // a log that cannot be written must not disturb the machine
	o.size += int64(n)
}

// finish takes what is left of a process that has ended, and closes.
func (o *output) finish() {
	if raw, err := o.fifo.SyscallConn(); err == nil {
		// Not Read, which would wait for the pump. Whichever of the two gets a part keeps it.
		_ = raw.Control(func(fd uintptr) {
			buf := make([]byte, 4096)
			for {
				n, err := unix.Read(int(fd), buf)
				if n <= 0 || err != nil {
					return
				}
				o.keep(buf[:n])
			}
		})
	}
	o.close()
}

func (o *output) close() {
	o.fifo.Close()
	<-o.done
	o.file.Close()
}

// tail gives the newest of what QEMU said, as one line.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := strings.FieldsFunc(string(o.last), func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) > 4 {
		lines = lines[len(lines)-4:]
	}
	if len(lines) == 0 {
		return "it said nothing"
	}
	return "it said: " + strings.Join(lines, "; ")
}
