// Package guest is versd's side of the protocol between versd and the agent inside a VM, and the protocol itself
// (docs/guest-protocol.md). One connection carries one request: a message in each direction, then frames or raw bytes.
package guest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Version of the protocol. It stands in front of every message; both sides refuse another one.
const Version = 1

// Port on which the agent listens, on the control network only.
const Port = 7077

// Limits that hold before anything is allocated.
const (
	MaxMessage = 4 << 20   // bytes of JSON in one message
	MaxFrame   = 128 << 10 // bytes of payload in one frame
	MaxChunk   = 64 << 10  // bytes of output in one chunk
)

// FrameType says what a frame's payload is.
type FrameType byte

// The frame types.
const (
	FrameData   FrameType = 'd' // bytes: standard input, or content of a file
	FrameEOF    FrameType = 'e' // no payload: the sender's data is complete
	FrameChunk  FrameType = 'c' // output of a command: stream, cursor, time, bytes
	FrameExit   FrameType = 'x' // JSON Exit: the command has ended, last frame
	FrameError  FrameType = 'f' // JSON WireError: the operation failed, last frame
	FrameResize FrameType = 'w' // JSON Size: the terminal has a new size
	FrameDone   FrameType = 'r' // no payload: the operation has succeeded, last frame
)

// ErrProtocol is wrapped by every error that means the peer does not keep to the protocol.
var ErrProtocol = errors.New("guest protocol violated")

// preamble opens every message: three letters and the version.
var preamble = [4]byte{'V', 'G', 'P', Version}

// WriteMessage sends one message in one write.
func WriteMessage(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxMessage {
		return fmt.Errorf("%w: message of %d bytes is over the limit of %d", ErrProtocol, len(body), MaxMessage)
	}
	buf := make([]byte, 0, 8+len(body))
	buf = append(buf, preamble[:]...)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(body)))
	buf = append(buf, body...)
	_, err = w.Write(buf)
	return err
}

// ReadMessage reads one message and not a byte more. A stream that ends before its first byte gives io.EOF.
func ReadMessage(r io.Reader, v any) error {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	if !bytes.Equal(head[:3], preamble[:3]) {
		return fmt.Errorf("%w: message starts with %q", ErrProtocol, head[:4])
	}
	if head[3] != Version {
		return fmt.Errorf("%w: the peer speaks version %d, this side %d", ErrProtocol, head[3], Version)
	}
	size := binary.BigEndian.Uint32(head[4:])
	if size > MaxMessage {
		return fmt.Errorf("%w: message of %d bytes is over the limit of %d", ErrProtocol, size, MaxMessage)
	}
	// Grows with what really arrives: an announced length costs nothing.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, int64(size)); err != nil {
		return noEOF(err)
	}
	if err := json.Unmarshal(body.Bytes(), v); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Frame is one frame. Payload is valid until the next one is read.
type Frame struct {
	Type    FrameType
	Payload []byte
}

// FrameReader reads frames. It reads ahead by nothing, so that a message or raw bytes may follow.
type FrameReader struct {
	r    io.Reader
	head [5]byte
	buf  []byte
}

// NewFrameReader reads frames from r; a buffered reader saves system calls.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: r} }

// Next reads one frame. The end of the stream between frames gives io.EOF, within one io.ErrUnexpectedEOF.
func (f *FrameReader) Next() (Frame, error) {
	if _, err := io.ReadFull(f.r, f.head[:]); err != nil {
		return Frame{}, err
	}
	size := binary.BigEndian.Uint32(f.head[1:])
	if size > MaxFrame {
		return Frame{}, fmt.Errorf("%w: frame of %d bytes is over the limit of %d", ErrProtocol, size, MaxFrame)
	}
	if int(size) > cap(f.buf) {
		f.buf = make([]byte, size)
	}
	f.buf = f.buf[:size]
	if _, err := io.ReadFull(f.r, f.buf); err != nil {
		return Frame{}, noEOF(err)
	}
	return Frame{Type: FrameType(f.head[0]), Payload: f.buf}, nil
}

// FrameWriter writes frames, each in one write. Not safe for concurrent use.
type FrameWriter struct {
	w   io.Writer
	buf []byte
}

// NewFrameWriter writes frames to w.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// Write sends one frame whose payload is the concatenation of parts.
func (f *FrameWriter) Write(t FrameType, parts ...[]byte) error {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size > MaxFrame {
		return fmt.Errorf("%w: frame of %d bytes is over the limit of %d", ErrProtocol, size, MaxFrame)
	}
	f.buf = append(f.buf[:0], byte(t))
	f.buf = binary.BigEndian.AppendUint32(f.buf, uint32(size))
	for _, p := range parts {
		f.buf = append(f.buf, p...)
	}
	_, err := f.w.Write(f.buf)
	return err
}

// WriteJSON sends one frame with v as JSON.
func (f *FrameWriter) WriteJSON(t FrameType, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	return f.Write(t, payload)
}

// WriteData sends p as data frames.
func (f *FrameWriter) WriteData(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), MaxChunk)
		if err := f.Write(FrameData, p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// Chunk is a piece of a command's output.
type Chunk struct {
	Stream string // Stdout or Stderr
	Cursor int64  // starts at 1, strictly increasing within one command
	Time   time.Time
	Data   []byte // at most MaxChunk bytes
}

const chunkHead = 1 + 8 + 8

// WriteChunk sends a chunk.
func (f *FrameWriter) WriteChunk(c Chunk) error {
	var head [chunkHead]byte
	head[0] = 1
	if c.Stream == Stderr {
		head[0] = 2
	}
	binary.BigEndian.PutUint64(head[1:], uint64(c.Cursor))
	binary.BigEndian.PutUint64(head[9:], uint64(c.Time.UnixNano()))
	return f.Write(FrameChunk, head[:], c.Data)
}

// ParseChunk reads the payload of a chunk frame. Data points into payload.
func ParseChunk(payload []byte) (Chunk, error) {
	if len(payload) < chunkHead || len(payload) > chunkHead+MaxChunk {
		return Chunk{}, fmt.Errorf("%w: chunk frame of %d bytes", ErrProtocol, len(payload))
	}
	c := Chunk{
		Cursor: int64(binary.BigEndian.Uint64(payload[1:])),
		Time:   time.Unix(0, int64(binary.BigEndian.Uint64(payload[9:]))).UTC(),
		Data:   payload[chunkHead:],
	}
	switch payload[0] {
	case 1:
		c.Stream = Stdout
	case 2:
		c.Stream = Stderr
	default:
		return Chunk{}, fmt.Errorf("%w: chunk of stream %d", ErrProtocol, payload[0])
	}
	if c.Cursor < 1 {
		return Chunk{}, fmt.Errorf("%w: chunk with cursor %d", ErrProtocol, c.Cursor)
	}
	return c, nil
}
