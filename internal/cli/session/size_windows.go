package session

import (
	"context"
	"os"
	"time"

	"golang.org/x/term"
)

// watchSize calls changed whenever the terminal has another size than width and height. Windows sends no signal for
// that, so it looks four times a second; the size belongs to the output there.
func watchSize(ctx context.Context, _, width, height int, changed func(width, height int)) {
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	for {
		if w, h, err := term.GetSize(int(os.Stdout.Fd())); err == nil && (w != width || h != height) {
			width, height = w, h
			changed(w, h)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
