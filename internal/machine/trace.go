package machine

import "context"

// Moments of one operation, in the order in which they come. Benchmarks publish them separately (design section 9):
// one number for "branch" says nothing.
const (
	MomentPaused    = "paused"    // the source stood still from here on
	MomentCaptured  = "captured"  // it runs again
	MomentMapped    = "mapped"    // the flat file is complete
	MomentStarted   = "started"   // the clone's process answers
	MomentResumed   = "resumed"   // the clone's vCPUs run
	MomentAnswers   = "answers"   // the clone accepts TCP
	MomentConfirmed = "confirmed" // its agent confirmed the new identity
	MomentDurable   = "durable"   // the commit is on stable storage
)

// Trace is told when an operation of a VM reaches a moment. It is called concurrently.
type Trace func(vmID, moment string)

type traceKey struct{}

// WithTrace makes operations under ctx report their moments.
func WithTrace(ctx context.Context, t Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

func trace(ctx context.Context, vmID, moment string) {
	if t, ok := ctx.Value(traceKey{}).(Trace); ok {
		t(vmID, moment)
	}
}
