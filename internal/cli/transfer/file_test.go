package transfer

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// What waits for standard input ends with its context, though nobody writes.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	silent, keep := io.Pipe()
	defer keep.Close()
	why := errors.New("interrupted")
	ctx, interrupt := context.WithCancelCause(t.Context())
	r := abandoned(ctx, silent)
	interrupt(why)
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	if data, err := io.ReadAll(abandoned(t.Context(), strings.NewReader("all"))); err != nil || string(data) != "all" {
		t.Errorf("%q, %v", data, err)
	}
}
