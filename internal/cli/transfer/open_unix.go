//go:build !windows

package transfer

import "golang.org/x/sys/unix"

// nonBlocking keeps the opening of a pipe, which has taken a file's place, from waiting for its writer.
const nonBlocking = unix.O_NONBLOCK
