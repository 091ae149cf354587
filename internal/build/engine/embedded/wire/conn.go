package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"vers/internal/build/engine"
)

// Kind of a frame.
type Kind byte

// The kinds. A frame is its kind, the length of its content as four bytes, the most significant first, and the content.
const (
	Message Kind = 'm' // JSON
	Data    Kind = 'd' // of a request or a reply
	Output  Kind = 'o' // of a command or a build
	Errors  Kind = 'e' // of a command
	End     Kind = '.' // of Data
)

// maxFrame bounds the content of a frame. Data is sent in smaller pieces.
const (
	maxFrame = 16 << 20
	piece    = 64 << 10
)

// Conn sends and receives frames. Sending is safe for several goroutines; one receives.
type Conn struct {
	r  io.Reader
	mu sync.Mutex
	w  io.Writer
}

// NewConn speaks over r and w, which need no buffering of their own.
func NewConn(r io.Reader, w io.Writer) *Conn { return &Conn{r: r, w: w} }

// Frame writes one frame.
func (c *Conn) Frame(kind Kind, content []byte) error {
	if len(content) > maxFrame {
		return fmt.Errorf("a message to or from the builder has %d bytes; %d is the most", len(content), maxFrame)
	}
	frame := make([]byte, 5, 5+len(content))
	frame[0] = byte(kind)
	binary.BigEndian.PutUint32(frame[1:], uint32(len(content)))
	frame = append(frame, content...)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write(frame)
	return err
}

// Send writes a message.
func (c *Conn) Send(message any) error {
	content, err := json.Marshal(message)
	if err != nil {
		return err
	}
	return c.Frame(Message, content)
}

// Next reads one frame. io.EOF is an end between frames.
func (c *Conn) Next() (Kind, []byte, error) {
	var header [5]byte
	if _, err := io.ReadFull(c.r, header[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(header[1:])
	if n > maxFrame {
		return 0, nil, errors.New("what came over the pipe is no frame")
	}
	content := make([]byte, n)
	if _, err := io.ReadFull(c.r, content); err != nil {
		return 0, nil, fmt.Errorf("a frame is cut off: %w", io.ErrUnexpectedEOF)
	}
	return Kind(header[0]), content, nil
}

// Writer sends everything written to it as frames of a kind.
func (c *Conn) Writer(kind Kind) io.Writer { return &frameWriter{c, kind} }

type frameWriter struct {
	conn *Conn
	kind Kind
}

func (w *frameWriter) Write(p []byte) (int, error) {
	for written := 0; ; {
		n := min(len(p)-written, piece)
		if n == 0 {
			return written, nil
		}
		if err := w.conn.Frame(w.kind, p[written:written+n]); err != nil {
			return written, err
		}
		written += n
	}
}

// SendData sends r to its end, and then End.
func (c *Conn) SendData(r io.Reader) error {
	if _, err := io.CopyBuffer(onlyWriter{c.Writer(Data)}, onlyReader{r}, make([]byte, piece)); err != nil {
		return err
	}
	return c.Frame(End, nil)
}

// onlyWriter and onlyReader keep io.Copy to its buffer.
type onlyWriter struct{ io.Writer }
type onlyReader struct{ io.Reader }

// DataReader reads Data frames up to End. Nobody else may receive meanwhile.
func (c *Conn) DataReader() io.Reader { return &dataReader{conn: c} }

type dataReader struct {
	conn *Conn
	rest []byte
	err  error
}

func (r *dataReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		var kind Kind
		kind, r.rest, r.err = r.conn.Next()
		switch {
		case r.err != nil:
			r.err = io.ErrUnexpectedEOF
		case kind == End:
			r.err = io.EOF
		case kind != Data:
			r.err = fmt.Errorf("a frame of kind %q came among data", kind)
		}
	}
	if len(r.rest) == 0 {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func asStep(err error) (*engine.StepError, bool) {
	var step *engine.StepError
	ok := errors.As(err, &step)
	return step, ok
}
