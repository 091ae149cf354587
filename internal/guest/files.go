package guest

import (
	"io"
	"net"

	"vers/internal/fault"
)

// fileReader turns data frames into a stream.
type fileReader struct {
	conn   net.Conn
	stop   func() bool
	frames *FrameReader
	rest   []byte
	err    error
}

func (f *fileReader) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.err != nil {
			return 0, f.err
		}
		frame, err := f.frames.Next()
		switch {
		case err != nil:
			f.err = fault.Unavailablef("lost the connection to the VM's agent in the middle of a file: %w", noEOF(err))
		case frame.Type == FrameData:
			f.rest = frame.Payload
		case frame.Type == FrameEOF:
			f.err = io.EOF
		case frame.Type == FrameError:
			f.err = parseError(frame.Payload)
		default:
			f.err = fault.New(fault.Internal, "%w: frame %q in a file", ErrProtocol, frame.Type)
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

func (f *fileReader) Close() error {
	f.stop()
	return f.conn.Close()
}
