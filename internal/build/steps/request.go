package steps

import (
	"fmt"
	"time"

	"vers/internal/build/source"
	"vers/internal/catalog"
)

// Request is what is to be built.
type Request struct {
	Context    *source.Tree
	Dockerfile string // path in the context
	Tag        string // "" none
	Target     string // stage; "" the last
	Args       map[string]string
	NoCache    bool
	Keep       bool // the VM of the last stage, also when the build fails

	// Ready is a command that is tried in the machine until it succeeds, before the last commit. "" none.
	Ready        string
	ReadyTimeout time.Duration // 0: 5 minutes

	Config catalog.VMConfig // of machines that no commit gives their sizes: FROM scratch and FROM an image
}

const (
	defaultReady = 5 * time.Minute
	maxReady     = 24 * time.Hour
)

// Result is what was built.
type Result struct {
	CommitID    string
	Tag         string
	BuilderVMID string // that was kept
	Steps       int    // that change files: RUN, COPY, ADD
	CachedSteps int
	Cached      bool // the commit itself was there already
	Image       catalog.ImageConfig
	Took        time.Duration
}

// Types of events.
const (
	EventStep    = "step"    // an instruction begins
	EventCached  = "cached"  // its outcome is there already
	EventLog     = "log"     // it wrote something
	EventDone    = "done"    // it has run
	EventWarning = "warning" // something is not as its author may think
	EventNotice  = "notice"  // what goes on between steps
)

// Event is something that happens in a build. They come one after the other.
type Event struct {
	Type   string
	Number int // of the instruction, from 1
	Total  int
	Stage  string // name or number
	Line   int    // in the Dockerfile
	Text   string // the instruction, the warning or the notice
	Stream string // stdout or stderr
	Data   []byte
	Commit string // that holds the outcome
	Took   time.Duration
}

// StepError says which step of a build failed.
type StepError struct {
	Number int
	Total  int
	Line   int
	Text   string
	Code   *int   // of its command; nil: it did not come to that
	VMID   string // that was kept
	Err    error
}

func (e *StepError) Error() string {
	text := []rune(e.Text)
	if len(text) > shownText {
		text = append(text[:shownText], '…')
	}
	return fmt.Sprintf("step %d/%d, line %d (%s): %v", e.Number, e.Total, e.Line, string(text), e.Err)
}

const shownText = 120 // characters of an instruction

// Unwrap gives the cause.
func (e *StepError) Unwrap() error { return e.Err }
