package api

import "io"

// NewExecStreamForTest reads a stream from body.
func NewExecStreamForTest(body io.ReadCloser) *ExecStream { return newExecStream(body) }
