package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// errQMPClosed is what commands get when the connection ends, because QEMU did or because it was closed here.
var errQMPClosed = errors.New("the QMP connection is closed")

// QMP is a connection to QEMU's monitor. Its methods are safe for concurrent use.
type QMP struct {
	rw      io.ReadWriteCloser
	onEvent func(Event)

	write sync.Mutex // one command at a time on the wire

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan qmpMessage
	err     error

	greeted chan struct{}
	done    chan struct{}
}

// NewQMP speaks QMP over rw, which it owns from now on, and enters command mode. onEvent, which may be nil, is called
// for each event, in order, from the goroutine that reads: it must not wait for anything.
func NewQMP(ctx context.Context, rw io.ReadWriteCloser, onEvent func(Event)) (*QMP, error) {
	q := &QMP{rw: rw, onEvent: onEvent, pending: map[uint64]chan qmpMessage{}, greeted: make(chan struct{}), done: make(chan struct{})}
	go q.read()
	select {
	case <-q.greeted:
	case <-q.done:
		return nil, fmt.Errorf("wait for QEMU's greeting: %w", q.failure())
	case <-ctx.Done():
		q.Close()
		return nil, fmt.Errorf("wait for QEMU's greeting: %w", context.Cause(ctx))
	}
	if err := q.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		q.Close()
		return nil, err
	}
	return q, nil
}

// DialQMP connects to the socket called name in the directory dir. The path may be longer than a UNIX socket address.
func DialQMP(ctx context.Context, dir, name string, onEvent func(Event)) (*QMP, error) {
	var conn net.Conn
	err := inDirectory(dir, func(dir string) error {
		var d net.Dialer
		var err error
		conn, err = d.DialContext(ctx, "unix", dir+"/"+name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU's monitor %s/%s: %w", dir, name, err)
	}
	return NewQMP(ctx, conn, onEvent)
}

// inDirectory calls do with a short path that means dir: sun_path holds 108 bytes only.
func inDirectory(dir string, do func(short string) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return do("/proc/self/fd/" + strconv.Itoa(fd))
}

// Execute runs a command and stores what it returns in result; arguments and result may be nil. When ctx ends first,
// the command is not taken back: QEMU may still carry it out.
func (q *QMP) Execute(ctx context.Context, command string, arguments, result any) error {
	return q.execute(ctx, command, arguments, result, -1)
}

// ExecuteFD is Execute with a file descriptor that QEMU receives a copy of.
func (q *QMP) ExecuteFD(ctx context.Context, command string, arguments any, file *os.File) error {
	return q.execute(ctx, command, arguments, nil, int(file.Fd()))
}

func (q *QMP) execute(ctx context.Context, command string, arguments, result any, fd int) error {
	answer := make(chan qmpMessage, 1)
	q.mu.Lock()
	if q.err != nil {
		defer q.mu.Unlock()
		return fmt.Errorf("send %s to QEMU: %w", command, q.err)
	}
	q.next++
	id := q.next
	q.pending[id] = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.pending, id)
		q.mu.Unlock()
	}()

	if err := q.send(command, arguments, id, fd); err != nil {
		return fmt.Errorf("send %s to QEMU: %w", command, err)
	}
	select {
	case m := <-answer:
		return m.result(command, result)
	case <-q.done:
		select { // the answer may have come just before the end
		case m := <-answer:
			return m.result(command, result)
		default:
			return fmt.Errorf("wait for QEMU's answer to %s: %w", command, q.failure())
		}
	case <-ctx.Done():
		return fmt.Errorf("wait for QEMU's answer to %s: %w", command, context.Cause(ctx))
	}
}

func (m qmpMessage) result(command string, result any) error {
	if m.Error != nil {
		m.Error.Command = command
		return m.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("read QEMU's answer to %s: %w", command, err)
	}
	return nil
}

func (q *QMP) send(command string, arguments any, id uint64, fd int) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return err
	}
	line = append(line, '\n')
	q.write.Lock()
	defer q.write.Unlock()
	if fd < 0 {
		_, err = q.rw.Write(line)
		return err
	}
	conn, ok := q.rw.(*net.UnixConn)
	if !ok {
		return errors.New("this QMP connection cannot carry files")
	}
	_, _, err = conn.WriteMsgUnix(line, unix.UnixRights(fd), nil)
	return err
}

// read takes messages from QEMU until the connection ends.
func (q *QMP) read() {
	scanner := bufio.NewScanner(q.rw)
	scanner.Buffer(make([]byte, 0, 4096), qmpMessageLimit)
	greeted := false
	for scanner.Scan() {
		m, err := parseQMP(scanner.Bytes())
		switch {
		case err != nil:
			q.fail(err)
			return
		case m.Greeting != nil:
			if !greeted {
				greeted = true
				close(q.greeted)
			}
		case m.Event != "":
			if q.onEvent != nil {
				q.onEvent(m.event())
			}
		case m.ID != nil:
			q.mu.Lock()
			answer := q.pending[*m.ID]
			delete(q.pending, *m.ID)
			q.mu.Unlock()
			if answer != nil {
				answer <- m
			}
		}
	}
	q.fail(scanner.Err())
}

func (q *QMP) fail(err error) {
	q.mu.Lock()
	if q.err == nil {
		if q.err = errQMPClosed; err != nil && !errors.Is(err, net.ErrClosed) {
			q.err = fmt.Errorf("%w (%w)", errQMPClosed, err)
		}
	}
	q.mu.Unlock()
	q.rw.Close()
	close(q.done)
}

func (q *QMP) failure() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

// Done is closed when the connection is.
func (q *QMP) Done() <-chan struct{} { return q.done }

// Close ends the connection. QEMU goes on and accepts the next one.
func (q *QMP) Close() {
	q.rw.Close()
	<-q.done
}
