//go:build !windows

package session

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
)

// watchSize calls changed whenever the terminal has another size than width and height.
func watchSize(ctx context.Context, fd, width, height int, changed func(width, height int)) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGWINCH)
	defer signal.Stop(signals)
	for {
		// Ask before waiting as well: the size may have changed before we listened.
		if w, h, err := term.GetSize(fd); err == nil && (w != width || h != height) {
			width, height = w, h
			changed(w, h)
		}
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
	}
}
