package daemon

import (
	"fmt"
	"io"
	"log/slog"
)

// NewLogger makes the server's logger for a level of the configuration: debug, info, warn or error.
func NewLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("configuration: log_level is %q; debug, info, warn or error is possible", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }
