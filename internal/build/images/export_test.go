package images

import (
	"context"
	"io"
)

// Unpack is what Build does with a folder.
func (s *Service) Unpack(ctx context.Context, archive io.Reader, dir string) (digest string, err error) {
	return s.unpack(ctx, archive, dir)
}
