package mcp

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	pieceSize   = 8 << 10   // of a streamed piece of output, in bytes
	streamLimit = 256 << 10 // of all streamed pieces of a stream; the result holds beginning and end of more
)

// Output collects one stream of a command, beginning and end of it if it is long, and shows it to the client while it
// comes: as log messages, and as progress if the client asked for that. Write may be called by one goroutine.
type Output struct {
	ctx    context.Context
	call   *Call
	stream string // stdout or stderr
	steps  *progress

	keep    int // bytes to keep, half of them from the beginning
	head    []byte
	tail    []byte
	total   int64
	pending []byte // not yet shown: an unfinished line
	shown   int
}

// progress numbers the pieces of all streams of a call.
type progress struct {
	mu sync.Mutex
	n  float64
}

// Outputs makes the two streams of a command. ctx is that of the call, keep how many bytes of each stay in the result.
func (c *Call) Outputs(ctx context.Context, keep int) (stdout, stderr *Output) {
	steps := &progress{}
	return &Output{ctx: ctx, call: c, stream: "stdout", steps: steps, keep: keep},
		&Output{ctx: ctx, call: c, stream: "stderr", steps: steps, keep: keep}
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.total += int64(len(p))
	rest := p
	if room := o.keep/2 - len(o.head); room > 0 {
		n := min(room, len(rest))
		o.head, rest = append(o.head, rest[:n]...), rest[n:]
	}
	o.tail = append(o.tail, rest...)
	if limit := o.keep - o.keep/2; len(o.tail) > 2*limit+pieceSize {
		o.tail = append(o.tail[:0], o.tail[len(o.tail)-limit:]...)
	}
	o.show(p)
	return len(p), nil
}

// show sends whole lines, or pieces of very long ones. What a secret may begin in stays back until it is whole.
func (o *Output) show(p []byte) {
	if o.shown > streamLimit {
		return
	}
	o.pending = append(o.pending, p...)
	end := bytes.LastIndexByte(o.pending, '\n') + 1
	if end == 0 && len(o.pending) >= pieceSize {
		o.pending = []byte(o.call.mask.Text(string(o.pending)))
		end = max(len(o.pending)-o.call.mask.longest(), 0)
	}
	o.send(string(o.pending[:end]))
	o.pending = append(o.pending[:0], o.pending[end:]...)
}

// send shows text, in pieces.
func (o *Output) send(text string) {
	text = o.call.mask.Text(strings.ToValidUTF8(text, "\uFFFD"))
	for len(text) > 0 && o.shown <= streamLimit {
		n := len(text)
		if n > pieceSize {
			if n = strings.LastIndexByte(text[:pieceSize], '\n') + 1; n == 0 {
				n = pieceSize
			}
		}
		piece := strings.ToValidUTF8(text[:n], "\uFFFD")
		text = text[n:]
		if o.shown += n; o.shown > streamLimit {
			piece += fmt.Sprintf("\n[no more of %s is streamed after %d bytes; the result has its beginning and its end]\n", o.stream, o.shown)
		}
		o.notify(piece)
	}
}

// notify sends one piece. A client that cannot be told has gone or does not listen; the result is what counts.
func (o *Output) notify(piece string) {
	session := o.call.request.Session
	level := sdk.LoggingLevel("info") //nolint:staticcheck // clients of protocols before 2026-07-28 get output so
	if o.stream == "stderr" {
		level = "warning"
	}
	_ = session.Log(o.ctx, &sdk.LoggingMessageParams{ //nolint:staticcheck // see above
		Level: level, Logger: "vers.execute", Data: map[string]string{"stream": o.stream, "text": piece},
	})
	token := o.call.request.Params.GetProgressToken()
	if token == nil {
		return
	}
	o.steps.mu.Lock()
	defer o.steps.mu.Unlock()
	o.steps.n++
	_ = session.NotifyProgress(o.ctx, &sdk.ProgressNotificationParams{ProgressToken: token, Progress: o.steps.n, Message: strings.TrimSuffix(piece, "\n")})
}

// Flush shows what is left of the last line.
func (o *Output) Flush() {
	if o.shown <= streamLimit {
		o.send(string(o.pending))
	}
	o.pending = nil
}

// Result gives the text that is kept, with a line in the middle that says how much is missing, and the number of bytes
// that the command wrote and that were cut.
func (o *Output) Result() (text string, total, cut int64) {
	tail := o.tail
	if limit := o.keep - o.keep/2; len(tail) > limit {
		tail = tail[len(tail)-limit:]
	}
	cut = o.total - int64(len(o.head)) - int64(len(tail))
	if cut == 0 {
		return strings.ToValidUTF8(string(o.head)+string(tail), "\uFFFD"), o.total, 0
	}
	statement := fmt.Sprintf("\n[… %d of %d bytes cut here …]\n", cut, o.total)
	return strings.ToValidUTF8(string(o.head), "\uFFFD") + statement + strings.ToValidUTF8(string(tail), "\uFFFD"), o.total, cut
}
