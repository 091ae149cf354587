package netstack

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/waiter"
)

// conn is a connection to the guest. It gives the errors that code written for the host's connections looks for:
// net.ErrClosed, os.ErrDeadlineExceeded, syscall.ECONNRESET, syscall.EPIPE.
type conn struct {
	*gonet.TCPConn
	closed atomic.Bool
}

var _ interface {
	net.Conn
	CloseWrite() error
	CloseRead() error
} = (*conn)(nil)

func newConn(queue *waiter.Queue, ep tcpip.Endpoint) *conn {
	return &conn{TCPConn: gonet.NewTCPConn(queue, ep)}
}

// Read reads what the guest sent.
func (c *conn) Read(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, c.mapError("read", net.ErrClosed)
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := c.TCPConn.Read(p)
	return n, c.mapError("read", err)
}

// Write sends to the guest and waits while the guest does not read.
func (c *conn) Write(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, c.mapError("write", net.ErrClosed)
	}
	n, err := c.TCPConn.Write(p)
	return n, c.mapError("write", err)
}

// Close ends the connection. What was written before is still delivered. Calls that wait return net.ErrClosed.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return c.mapError("close", net.ErrClosed)
	}
	return c.TCPConn.Close()
}

// CloseWrite tells the guest that nothing more comes.
func (c *conn) CloseWrite() error { return c.mapError("close", c.TCPConn.CloseWrite()) }

// CloseRead gives up what the guest still sends.
func (c *conn) CloseRead() error { return c.mapError("close", c.TCPConn.CloseRead()) }

func (c *conn) mapError(op string, err error) error {
	if err == nil {
		return nil
	}
	var known error
	var timeout net.Error
	var opError *net.OpError
	switch {
	case c.closed.Load():
		known = net.ErrClosed
	case errors.As(err, &timeout) && timeout.Timeout():
		known = os.ErrDeadlineExceeded
	case errors.As(err, &opError):
		switch opError.Err.Error() {
		case (&tcpip.ErrConnectionReset{}).String(), (&tcpip.ErrConnectionAborted{}).String(), (&tcpip.ErrAborted{}).String():
			known = os.NewSyscallError(op, syscall.ECONNRESET)
		case (&tcpip.ErrClosedForSend{}).String(), (&tcpip.ErrNotConnected{}).String():
			known = os.NewSyscallError(op, syscall.EPIPE)
		case (&tcpip.ErrTimeout{}).String():
			known = os.NewSyscallError(op, syscall.ETIMEDOUT)
		}
	}
	if known == nil {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: known}
}
