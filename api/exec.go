package api

import "time"

// ExecRequest is the body of POST /vm/{id}/exec and /vm/{id}/exec/stream.
type ExecRequest struct {
	Command     []string          `json:"command" nullable:"false" minItems:"1" doc:"Program and arguments, looked up in PATH; no shell"`
	Env         map[string]string `json:"env,omitempty" nullable:"true" doc:"Added to the environment"`
	WorkingDir  *string           `json:"working_dir,omitempty" nullable:"true" doc:"Default: the image's working directory, else the user's home"`
	User        *string           `json:"user,omitempty" nullable:"true" doc:"[ours] user[:group], names or numbers. Default: the image's user, else root"`
	Stdin       *string           `json:"stdin,omitempty" nullable:"true" doc:"Whole standard input; absent: empty"`
	TimeoutSecs *int64            `json:"timeout_secs,omitempty" nullable:"true" minimum:"0" doc:"0 or absent: no limit"`
	ExecID      *string           `json:"exec_id,omitempty" nullable:"true" doc:"Id chosen by the client; generated when absent"`
}

// ExecResult is the answer of POST /vm/{id}/exec.
type ExecResult struct {
	ExitCode int    `json:"exit_code" doc:"128 + signal number for a death by signal, 124 when the time limit ended it"`
	Stdout   string `json:"stdout" doc:"Decoded as UTF-8, bad bytes replaced"`
	Stderr   string `json:"stderr"`
	ExecID   string `json:"exec_id" format:"uuid"`
}

// AttachRequest is the body of POST /vm/{id}/exec/stream/attach.
type AttachRequest struct {
	ExecID     string `json:"exec_id"`
	Cursor     *int64 `json:"cursor,omitempty" nullable:"true" doc:"Only what comes after it; absent: everything kept"`
	FromLatest *bool  `json:"from_latest,omitempty" nullable:"true" doc:"Only what comes from now on; cursor is ignored"`
}

// SignalRequest is the body of POST /vm/{id}/exec/signal.
type SignalRequest struct {
	ExecID string `json:"exec_id"`
	Signal string `json:"signal" doc:"Name or number: INT, SIGTERM, 9"`
}

// Types of a StreamEvent, and names of streams.
const (
	EventChunk = "chunk"
	EventExit  = "exit"
	EventError = "error"

	Stdout = "stdout"
	Stderr = "stderr"
)

// StreamEvent is one line of the exec streams. A stream ends with exit or error; one that ends otherwise was cut.
type StreamEvent struct {
	Type      string     `json:"type" enum:"chunk,exit,error"`
	Stream    string     `json:"stream,omitempty" doc:"chunk: stdout or stderr"`
	Data      []byte     `json:"data_b64,omitempty" doc:"chunk: the bytes"`
	Cursor    int64      `json:"cursor,omitempty" doc:"chunk, exit: strictly increasing from 1"`
	ExecID    string     `json:"exec_id,omitempty"`
	Timestamp *time.Time `json:"timestamp,omitempty"`
	ExitCode  *int       `json:"exit_code,omitempty" doc:"exit"`
	Code      string     `json:"code,omitempty" doc:"error: short name"`
	Message   string     `json:"message,omitempty" doc:"error: what happened"`
}

// LogEntry is a piece of output of a command.
type LogEntry struct {
	Timestamp time.Time `json:"timestamp"`
	Stream    string    `json:"stream"`
	Data      []byte    `json:"data_b64"`
	ExecID    string    `json:"exec_id,omitempty"`
}

// LogList is the answer of GET /vm/{id}/logs.
type LogList struct {
	Entries    []LogEntry `json:"entries" nullable:"false"`
	NextOffset int64      `json:"next_offset" doc:"Pass it as offset to go on"`
	EOF        bool       `json:"eof" doc:"Nothing more is there now"`
}

// FileContent is the answer of GET /vm/{id}/files.
type FileContent struct {
	Content []byte `json:"content_b64"`
}

// FileRequest is the body of PUT /vm/{id}/files.
type FileRequest struct {
	Path       string  `json:"path" doc:"Absolute"`
	Content    []byte  `json:"content_b64" nullable:"true" encoding:"BASE64"` // spelled so, huma does not refuse empty content
	Mode       *uint32 `json:"mode,omitempty" nullable:"true" doc:"Plain integer: 420 is 0644, the default"`
	CreateDirs *bool   `json:"create_dirs,omitempty" nullable:"true" doc:"Make missing parent directories"`
}
