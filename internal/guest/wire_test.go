package guest

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"vers/internal/fault"
)

func TestMessageRoundTrip(t *testing.T) {
	var buf bytes.Buffer
	in := Request{Op: OpExec, Body: []byte(`{"id":"x"}`)}
	if err := WriteMessage(&buf, in); err != nil {
		t.Fatal(err)
	}
	buf.WriteString("raw bytes that follow")
	var out Request
	if err := ReadMessage(&buf, &out); err != nil {
		t.Fatal(err)
	}
	if out.Op != in.Op || string(out.Body) != string(in.Body) || buf.String() != "raw bytes that follow" {
		t.Errorf("got %+v, left %q", out, buf.String())
	}
}

func TestMessagesRefused(t *testing.T) {
	for name, in := range map[string]string{
		"other protocol": "GET / HTTP/1.1\r\n\r\n",
		"other version":  "VGP\x02\x00\x00\x00\x02{}",
		"too long":       "VGP\x01\xff\xff\xff\xff{}",
		"no JSON":        "VGP\x01\x00\x00\x00\x02}{",
	} {
		if err := ReadMessage(strings.NewReader(in), new(Request)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ReadMessage(strings.NewReader("VGP\x01\x00\x00\x00\x09{}"), new(Request)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut message: %v", err)
	}
	if err := WriteMessage(io.Discard, strings.Repeat("x", MaxMessage)); !errors.Is(err, ErrProtocol) {
		t.Errorf("message over the limit: %v", err)
	}
}

func TestFrames(t *testing.T) {
	var buf bytes.Buffer
	w := NewFrameWriter(&buf)
	c := Chunk{Stream: Stderr, Cursor: 5, Time: time.Unix(7, 8).UTC(), Data: []byte("output")}
	for _, err := range []error{w.WriteChunk(c), w.WriteData(make([]byte, MaxChunk+1)), w.Write(FrameEOF)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Write(FrameData, make([]byte, MaxFrame+1)); !errors.Is(err, ErrProtocol) {
		t.Errorf("frame over the limit: %v", err)
	}
	r := NewFrameReader(&buf)
	f, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseChunk(f.Payload)
	if err != nil || got.Stream != c.Stream || got.Cursor != 5 || !got.Time.Equal(c.Time) || string(got.Data) != "output" {
		t.Errorf("chunk %+v, %v", got, err)
	}
	for _, size := range []int{MaxChunk, 1, 0} {
		if f, err := r.Next(); err != nil || len(f.Payload) != size {
			t.Errorf("frame of %d bytes, %v, want %d", len(f.Payload), err, size)
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	for kind := fault.Internal; kind <= fault.Timeout; kind++ {
		err := ToWire(fault.New(kind, "message")).Err()
		if fault.KindOf(err) != kind || err.Error() != "message" {
			t.Errorf("%v became %v: %v", kind, fault.KindOf(err), err)
		}
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte("VGP\x01\x00\x00\x00\x0e{\"op\":\"hello\"}"))
	f.Add([]byte("VGP\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var req Request
		r := bytes.NewReader(data)
		if ReadMessage(r, &req) == nil && len(data)-r.Len() < 8 {
			t.Error("a message out of less than its head")
		}
	})
}

func FuzzFrames(f *testing.F) {
	var buf bytes.Buffer
	_ = NewFrameWriter(&buf).WriteChunk(Chunk{Stream: Stdout, Cursor: 1, Data: []byte("x")})
	f.Add(buf.Bytes())
	f.Add([]byte("d\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewFrameReader(bytes.NewReader(data))
		taken := 0
		for {
			frame, err := r.Next()
			if err != nil {
				return
			}
			if taken += 5 + len(frame.Payload); taken > len(data) || len(frame.Payload) > MaxFrame {
				t.Fatalf("%d bytes of frames out of %d", taken, len(data))
			}
			if c, err := ParseChunk(frame.Payload); err == nil && (c.Cursor < 1 || len(c.Data) > MaxChunk) {
				t.Fatalf("chunk %+v", c)
			}
		}
	})
}
