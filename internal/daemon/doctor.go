package daemon

import (
	"context"
	"io"

	"vers/internal/config"
)

// Doctor x
func Doctor(ctx context.Context, c config.Server, brief bool, out io.Writer) error { return nil }
