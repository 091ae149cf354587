package api

// CommitBuildEvent is one line of a build that ends in a commit. The last one is a result or an error.
type CommitBuildEvent struct {
	Type   string `json:"type" enum:"step,cached,log,done,warning,notice,result,error" doc:"step: an instruction begins; cached: its outcome is there already; done: it has run"`
	Number int    `json:"number,omitempty" doc:"Of the instruction, from 1"`
	Total  int    `json:"total,omitempty"`
	Stage  string `json:"stage,omitempty" doc:"Name, or number from 0"`
	Line   int    `json:"line,omitempty" doc:"In the Dockerfile"`
	Text   string `json:"text,omitempty" doc:"The instruction, the warning or the notice"`

	Stream     string `json:"stream,omitempty" doc:"stdout or stderr, of log"`
	Data       []byte `json:"data,omitempty" doc:"What the step wrote"`
	CommitID   string `json:"commit_id,omitempty" doc:"That holds the outcome of the step; for builds only"`
	DurationMS int64  `json:"duration_ms,omitempty"`

	Result *CommitBuild      `json:"result,omitempty"`
	Error  *CommitBuildError `json:"error,omitempty"`
}

// Types of CommitBuildEvent.
const (
	CommitBuildStep    = "step"
	CommitBuildCached  = "cached"
	CommitBuildLog     = "log"
	CommitBuildDone    = "done"
	CommitBuildWarning = "warning"
	CommitBuildNotice  = "notice"
	CommitBuildResult  = "result"
	CommitBuildFailed  = "error"
)

// CommitBuild is the result of a build that ends in a commit.
type CommitBuild struct {
	CommitID     string            `json:"commit_id"`
	Tag          *string           `json:"tag"`
	BuilderVMID  *string           `json:"builder_vm_id" doc:"The VM, if it was to be kept"`
	Steps        int               `json:"steps" doc:"That change files: RUN, COPY, ADD"`
	CachedSteps  int               `json:"cached_steps" doc:"Of these, what did not have to run"`
	Cached       bool              `json:"cached" doc:"The commit itself was there already"`
	Cmd          []string          `json:"cmd" nullable:"false"`
	Entrypoint   []string          `json:"entrypoint" nullable:"false"`
	ExposedPorts []string          `json:"exposed_ports" nullable:"false"`
	Labels       map[string]string `json:"labels"`
	Env          []string          `json:"env" nullable:"false" doc:"KEY=VALUE"`
	WorkingDir   string            `json:"working_dir"`
	User         string            `json:"user"`
	DurationMS   int64             `json:"duration_ms"`
}

// CommitBuildError says why a build failed.
type CommitBuildError struct {
	Code        string  `json:"code" doc:"step_failed: a command of the Dockerfile; else the kind of the error"`
	Message     string  `json:"message"`
	Status      int     `json:"status,omitempty" doc:"HTTP status that the error would have as an answer; 0 for step_failed"`
	Number      int     `json:"number,omitempty" doc:"Of the instruction, from 1; 0: none had begun"`
	Line        int     `json:"line,omitempty" doc:"In the Dockerfile"`
	Text        string  `json:"text,omitempty" doc:"The instruction"`
	ExitCode    *int    `json:"exit_code" doc:"Of the step's command"`
	BuilderVMID *string `json:"builder_vm_id" doc:"The VM, if it was to be kept"`
}

// StepFailed is the code of a CommitBuildError whose step ended with another exit code than 0.
const StepFailed = "step_failed"

func (e *CommitBuildError) Error() string { return e.Message }

// Unwrap gives the error that the server would have answered with; nil for a failed step.
func (e *CommitBuildError) Unwrap() error {
	if e.Status == 0 {
		return nil
	}
	return &ResponseError{Status: e.Status, Message: e.Message}
}
