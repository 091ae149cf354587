package guest

import (
	"encoding/json"
	"errors"
	"io/fs"
	"time"

	"vers/internal/fault"
)

// The operations of the protocol. docs/guest-protocol.md says what follows each.
const (
	OpHello    = "hello"
	OpTakeOver = "take-over"
	OpRenew    = "renew"
	OpExec     = "exec"
	OpAttach   = "attach"
	OpSignal   = "signal"
	OpLogs     = "logs"
	OpRead     = "read-file"
	OpWrite    = "write-file"
	OpUnpack   = "unpack"
	OpPack     = "pack"
	OpSSH      = "ssh"
	OpDial     = "dial"
	OpSync     = "sync"
	OpGrow     = "grow-root"
	OpPowerOff = "power-off"
)

// Names of the output streams of a command.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Request is the first message on a connection.
type Request struct {
	Op   string          `json:"op"`
	Body json.RawMessage `json:"body,omitempty"`
}

// Reply is the agent's answer to it.
type Reply struct {
	Error *WireError      `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// WireError is an error as it travels: a fault kind and its message.
type WireError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

// ToWire makes err ready to travel.
func ToWire(err error) *WireError {
	kind := fault.KindOf(err)
	if kind == fault.Internal && errors.Is(err, fs.ErrNotExist) {
		kind = fault.NotFound
	}
	return &WireError{Kind: kind.String(), Message: err.Error()}
}

// Err makes it an error of its kind again.
func (e *WireError) Err() error {
	for kind := fault.Internal; kind <= fault.Timeout; kind++ {
		if kind.String() == e.Kind {
			return fault.New(kind, "%s", e.Message)
		}
	}
	return fault.New(fault.Internal, "%s", e.Message)
}

// Kinds of main process.
const (
	MainInit   = "init"   // the image's own init
	MainReaper = "reaper" // the agent's own small one
)

// Info is what the agent says about itself and its guest.
type Info struct {
	Version    string `json:"version"`              // of the agent
	Ready      bool   `json:"ready"`                // start-up has finished; with systemd, that of its default target too
	Main       string `json:"main"`                 // MainInit, MainReaper, or "" while that is not decided
	InitPath   string `json:"init_path,omitempty"`  // of MainInit
	VMID       string `json:"vm_id,omitempty"`      // of the last Renew
	Generation int64  `json:"generation,omitempty"` // number of Renews, kept over branches
}

// Reasons of a Renew.
const (
	ReasonRun     = "run"
	ReasonRestore = "restore"
	ReasonBranch  = "branch"
)

// Identity is what makes a guest different from every other one.
type Identity struct {
	VMID           string            `json:"vm_id"`
	Hostname       string            `json:"hostname"`
	MachineID      string            `json:"machine_id"` // 32 hexadecimal digits
	Entropy        []byte            `json:"entropy"`    // at least 64 bytes, never used twice
	Time           time.Time         `json:"time"`       // now, by the host
	Env            map[string]string `json:"env,omitempty"`
	AuthorizedKeys []string          `json:"authorized_keys,omitempty"` // OpenSSH lines
	SSHHostKey     string            `json:"ssh_host_key"`              // OpenSSH PEM, unencrypted
	Reason         string            `json:"reason"`
	Nonce          string            `json:"nonce"` // chosen by the caller, echoed
	Process        Process           `json:"process,omitzero"`
}

// Process is how commands are run that do not say it themselves: what the VM's image says.
type Process struct {
	Env        map[string]string `json:"env,omitempty"`         // beats what the image has in /etc/environment, not Identity.Env
	WorkingDir string            `json:"working_dir,omitempty"` // of commands, not of logins; the user's home if it is gone
	User       string            `json:"user,omitempty"`        // of commands: user[:group], names or numbers
}

// Wake is the body of a take-over after sleep. An agent that is older than it only takes over.
type Wake struct {
	Time    time.Time `json:"time"`    // now, by the host
	Entropy []byte    `json:"entropy"` // at least 64 bytes
}

// Confirmation is sent only after every step of a Renew has succeeded.
type Confirmation struct {
	VMID       string `json:"vm_id"`
	Nonce      string `json:"nonce"`
	Generation int64  `json:"generation"`
	BootID     string `json:"boot_id"`
}

// StdinMode says where a command's standard input comes from.
type StdinMode string

// The modes.
const (
	StdinNone   StdinMode = "none"   // at its end from the start
	StdinBytes  StdinMode = "bytes"  // ExecRequest.Input
	StdinStream StdinMode = "stream" // Stream.Write and CloseWrite
)

// Size of a terminal in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// ExecRequest starts a command.
type ExecRequest struct {
	ID          string            `json:"id"`      // UUID; empty: chosen by the client
	Command     []string          `json:"command"` // argv, looked up in PATH
	Env         map[string]string `json:"env,omitempty"`
	WorkingDir  string            `json:"working_dir,omitempty"` // default: the image's, else home of the user
	User        string            `json:"user,omitempty"`        // user[:group], names or numbers; default the image's, else root
	Stdin       StdinMode         `json:"stdin,omitempty"`       // default none
	Input       []byte            `json:"-"`                     // for StdinBytes
	TimeoutSecs int64             `json:"timeout_secs,omitempty"`
	TTY         *Size             `json:"tty,omitempty"` // run on a terminal of this size; its output is all stdout
}

// AttachRequest follows a running or finished command.
type AttachRequest struct {
	ExecID     string `json:"exec_id"`
	Cursor     *int64 `json:"cursor,omitempty"`      // replay what comes after it; nil: all that is kept
	FromLatest bool   `json:"from_latest,omitempty"` // replay nothing; Cursor is ignored
}

// ExecReply answers an ExecRequest or AttachRequest.
type ExecReply struct {
	ExecID string `json:"exec_id"`
}

// Exit is the payload of an exit frame.
type Exit struct {
	Code   int       `json:"exit_code"`
	Cursor int64     `json:"cursor"`
	Time   time.Time `json:"time"`
}

// SignalRequest sends a signal to a command's process group.
type SignalRequest struct {
	ExecID string `json:"exec_id"`
	Signal string `json:"signal"` // "TERM", "SIGTERM" or "15"
}

// LogsRequest reads the output of all commands in time order.
type LogsRequest struct {
	Offset     int64  `json:"offset,omitempty"`      // bytes of output before it are skipped
	MaxEntries int    `json:"max_entries,omitempty"` // 0: as many as fit
	Stream     string `json:"stream,omitempty"`      // Stdout or Stderr; empty: both
}

// Logs is a page of output.
type Logs struct {
	Entries    []LogEntry `json:"entries"`
	NextOffset int64      `json:"next_offset"` // for the next LogsRequest
	EOF        bool       `json:"eof"`         // nothing more is there now
}

// LogEntry is a piece of output.
type LogEntry struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"`
	Data   []byte    `json:"data"`
	ExecID string    `json:"exec_id"`
}

// FileRequest names a file to read, or to write.
type FileRequest struct {
	Path       string      `json:"path"` // absolute
	Mode       fs.FileMode `json:"mode,omitempty"`
	CreateDirs bool        `json:"create_dirs,omitempty"`
	Offset     int64       `json:"offset,omitempty"` // byte to begin at; for writing only with InPlace
	// InPlace writes into the file that is there, which ends after the last byte. What has come stays, however it ends.
	InPlace bool `json:"in_place,omitempty"`
}

// FileInfo describes a file that is read.
type FileInfo struct {
	Path    string      `json:"path"`
	Size    int64       `json:"size"` // when it was opened; /proc files say 0
	Mode    fs.FileMode `json:"mode"` // permission bits
	ModTime time.Time   `json:"mod_time"`
}

// DialRequest asks for a connection from inside the guest's main network.
type DialRequest struct {
	Network string `json:"network"` // tcp, tcp4, tcp6 or unix
	Address string `json:"address"`
}

// GrowRequest asks to grow the root file system to its disk.
type GrowRequest struct {
	MinBytes int64 `json:"min_bytes,omitempty"` // wait until the guest sees a disk of at least this size
}

// UnpackRequest writes an archive's entries below a folder.
type UnpackRequest struct {
	Path string `json:"path"` // absolute; what the entry "." stands for, the others are below it
	// Into is the name of the only file of the archive, which is the entry ".": where Path is a folder, the file goes into it
	// under this name.
	Into  string `json:"into,omitempty"`
	Owner string `json:"owner,omitempty"` // user[:group], names or numbers; "" as in the archive
}

// PackRequest asks for an archive of files.
type PackRequest struct {
	Paths []string `json:"paths"` // absolute; * ? and [ ] match within one part
}
