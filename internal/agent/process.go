package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"vers/internal/guest"
)

// drainGrace is how long output is awaited after the direct child has ended while grandchildren hold its pipes.
const drainGrace = 100 * time.Millisecond

// launch says how a process is started.
type launch struct {
	argv  []string // argv[0] is what the user typed
	path  string   // the file to execute
	env   []string
	dir   string
	cred  *syscall.Credential
	tty   *guest.Size // non-nil: on a terminal
	stdin bool        // a pipe for standard input; without it, it is /dev/null
}

// process is a started child, leader of its own session and process group.
type process struct {
	proc    *os.Process
	pty     *os.File  // master of the terminal, if it has one
	stdin   io.Writer // nil without
	close   func()    // ends stdin, idempotent
	outputs []*output

	mu       sync.Mutex
	reaped   bool
	signaled bool // ended by a signal
}

// output is one stream from the child.
type output struct {
	stream string
	file   *os.File
	raw    syscall.RawConn

	mu       sync.Mutex
	read     int64     // bytes taken from the pipe so far
	exited   bool      // the direct child has ended
	target   int64     // bytes that were written when it ended
	graceEnd time.Time // stragglers are awaited until then
}

// start starts a process. The caller must call follow.
func start(l launch) (*process, error) {
	var undo []io.Closer
	defer func() {
		for _, c := range undo {
			_ = c.Close()
		}
	}()
	p := &process{close: func() {}}
	sys := &syscall.SysProcAttr{Setsid: true, Credential: l.cred}
	var files []*os.File
	var keep []io.Closer // ours, closed only on failure

	if l.tty != nil {
		master, slave, err := openTerminal()
		if err != nil {
			return nil, fmt.Errorf("open a terminal: %w", err)
		}
		undo = append(undo, slave)
		keep = append(keep, master)
		setSize(master, *l.tty)
		if l.cred != nil {
			_ = slave.Chown(int(l.cred.Uid), -1)
		}
		files = []*os.File{slave, slave, slave}
		sys.Setctty = true
		p.pty, p.stdin = master, master
		// The end of input on a terminal is a character.
		p.close = sync.OnceFunc(func() { _, _ = master.Write([]byte{4}) })
		p.outputs = []*output{{stream: guest.Stdout, file: master}}
	} else {
		in, err := p.openStdin(l.stdin, &keep)
		if err != nil {
			return nil, err
		}
		undo = append(undo, in)
		files = []*os.File{in}
		for _, stream := range []string{guest.Stdout, guest.Stderr} {
			r, w, err := os.Pipe()
			if err != nil {
				closeAll(keep)
				return nil, err
			}
			undo, keep = append(undo, w), append(keep, r)
			files = append(files, w)
			p.outputs = append(p.outputs, &output{stream: stream, file: r})
		}
	}
	for _, o := range p.outputs {
		raw, err := o.file.SyscallConn()
		if err != nil {
			closeAll(keep)
			return nil, err
		}
		o.raw = raw
	}
	attr := &os.ProcAttr{Dir: l.dir, Env: l.env, Files: files, Sys: sys}
	proc, err := os.StartProcess(l.path, l.argv, attr)
	if errors.Is(err, syscall.ENOEXEC) {
		// A script without a first line that names its interpreter: as every shell does, give it to sh.
		argv := append([]string{"sh", l.path}, l.argv[1:]...)
		proc, err = os.StartProcess("/bin/sh", argv, attr)
	}
	if err != nil {
		closeAll(keep)
		return nil, err
	}
	p.proc = proc
	return p, nil
}

// openTerminal opens a terminal whose master does not block. creack/pty makes it block, and then a Close waits for the
// read under way: the terminal of a client that is gone would not hang up before its program writes something.
func openTerminal() (master, slave *os.File, err error) {
	blocking, slave, err := pty.Open()
	if err != nil {
		return nil, nil, err
	}
	defer blocking.Close()
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, nil, errors.Join(err, slave.Close())
	}
	return os.NewFile(uintptr(fd), blocking.Name()), slave, nil
}

// setSize tells a terminal its size. pty.Setsize would make it block.
func setSize(master *os.File, size guest.Size) {
	if raw, err := master.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
		})
	}
}

func (p *process) openStdin(piped bool, keep *[]io.Closer) (*os.File, error) {
	if !piped {
		return os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	*keep = append(*keep, w)
	p.stdin = w
	p.close = func() { _ = w.Close() }
	return r, nil
}

func closeAll(list []io.Closer) {
	for _, c := range list {
		_ = c.Close()
	}
}

// follow hands all output to sink, from one goroutine per stream, and returns the exit code once the direct child has
// ended and what it had written is handed over. Output of grandchildren that come later still goes to sink.
func (p *process) follow(sink func(stream string, data []byte)) int {
	due := make(chan struct{}, len(p.outputs))
	var pumps sync.WaitGroup
	for _, o := range p.outputs {
		pumps.Go(func() { o.pump(sink, func() { due <- struct{}{} }) })
	}
	code := p.wait()
	if p.pty == nil {
		p.close()
	}
	for _, o := range p.outputs {
		o.childEnded()
	}
	for range p.outputs {
		<-due
	}
	go func() {
		pumps.Wait()
		closeAll(filesOf(p.outputs))
	}()
	return code
}

func filesOf(outputs []*output) []io.Closer {
	var list []io.Closer
	for _, o := range outputs {
		list = append(list, o.file)
	}
	return list
}

// wait waits for the direct child, reaps it and gives its exit code; death by signal n is 128+n.
func (p *process) wait() int {
	var info unix.Siginfo
	for {
		// Without reaping: until reaped is set, the process group cannot belong to anybody else.
		if err := unix.Waitid(unix.P_PID, p.proc.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reaped = true
	state, err := p.proc.Wait()
	if err != nil {
		return 255
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		p.signaled = true
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

// signal sends a signal to the process group. It reports false if the process has ended.
func (p *process) signal(sig syscall.Signal) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return false, nil
	}
	return true, unix.Kill(-p.proc.Pid, sig)
}

// resize tells the terminal its size.
func (p *process) resize(size guest.Size) {
	if p.pty != nil {
		setSize(p.pty, size)
	}
}

// buffers are shared: a quiet command holds none.
var buffers = sync.Pool{New: func() any { return new([guest.MaxChunk]byte) }}

// pump reads until the end of the stream. It calls due once, as soon as the exit may be announced.
func (o *output) pump(sink func(string, []byte), due func()) {
	due = sync.OnceFunc(due)
	defer due()
	for {
		buf, n, err := o.next()
		if n > 0 {
			sink(o.stream, buf[:n])
		}
		if buf != nil {
			buffers.Put(buf)
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return // closed by all writers; a terminal says EIO then
		}
		if o.drained() {
			due()
		}
	}
}

// next waits for output and takes it into a buffer from the pool.
func (o *output) next() (buf *[guest.MaxChunk]byte, n int, err error) {
	var rerr error
	err = o.raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[guest.MaxChunk]byte)
		o.mu.Lock()
		defer o.mu.Unlock()
		for {
			n, rerr = unix.Read(int(fd), buf[:])
			if !errors.Is(rerr, unix.EINTR) {
				break
			}
		}
		if errors.Is(rerr, unix.EAGAIN) {
			buffers.Put(buf)
			buf, n = nil, 0
			return false
		}
		o.read += int64(max(n, 0))
		return true
	})
	switch {
	case err != nil:
		return nil, 0, err
	case rerr != nil:
		return buf, 0, rerr
	case n <= 0:
		return buf, 0, io.EOF
	}
	return buf, n, nil
}

// childEnded notes how much is to be read before the exit may be announced, and wakes the pump after the grace.
func (o *output) childEnded() {
	_ = o.raw.Control(func(fd uintptr) {
		o.mu.Lock()
		defer o.mu.Unlock()
		waiting, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		if err != nil {
			waiting = 0
		}
		o.exited = true
		o.target = o.read + int64(waiting)
		o.graceEnd = time.Now().Add(drainGrace)
	})
	_ = o.file.SetReadDeadline(time.Now().Add(drainGrace))
}

// drained reports whether everything that was written when the child ended has been handed over, and the grace for
// stragglers is over.
func (o *output) drained() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.exited || time.Now().Before(o.graceEnd) {
		return false
	}
	_ = o.file.SetReadDeadline(time.Time{})
	return o.read >= o.target
}
