// Package audit keeps the record of who did what to which object with which result: one JSON object per line in
// <data>/audit.jsonl, the older part in audit.jsonl.1 and so on (docs/formats.md). It holds names and ids, never keys,
// variables, commands or file contents.
//
// A line is written before the caller goes on, so it survives the death of the process; it reaches stable storage within
// a second. Several processes may write: versd, and the commands that an operator runs beside it.
package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

// Name of the file in the data directory.
const Name = "audit.jsonl"

// Entry is one line.
type Entry struct {
	Time      time.Time         `json:"time"`
	RequestID string            `json:"request_id,omitempty"` // as in the server's log and the answer
	OrgID     string            `json:"org_id,omitempty"`
	Org       string            `json:"org,omitempty"` // its name then
	KeyID     string            `json:"key_id,omitempty"`
	Key       string            `json:"key,omitempty"`     // its name
	Actor     string            `json:"actor,omitempty"`   // who it was without a key: an operator, an e-mail
	Address   string            `json:"address,omitempty"` // host the call came from; "local" for the socket
	Action    string            `json:"action"`            // operation of the API, or command of versd
	Object    string            `json:"object,omitempty"`  // path of the call, or what the command named
	Made      map[string]string `json:"made,omitempty"`    // ids of what was made
	Status    int               `json:"status,omitempty"`  // of HTTP
	Result    string            `json:"result"`            // ok, or the kind of fault
}

// Options of a Log.
type Options struct {
	MaxBytes int64 // of one file; 0: 64 MiB
	Files    int   // kept, the present one too; 0: 8
}

// Log appends entries. It is safe for concurrent use, also by several processes.
type Log struct {
	path    string
	options Options
	lock    *flock.Flock // held while files are renamed

	mu    sync.Mutex
	file  *os.File
	dirty chan struct{}
	done  chan struct{}
	wait  sync.WaitGroup
}

const syncEvery = time.Second

// Open opens the log in the file path, and makes it when it is missing.
func Open(path string, o Options) (*Log, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	if o.Files == 0 {
		o.Files = 8
	}
	l := &Log{path: path, options: o, lock: flock.New(path + ".lock"), dirty: make(chan struct{}, 1), done: make(chan struct{})}
	if err := l.open(); err != nil {
		return nil, err
	}
	l.wait.Go(l.syncer)
	return l, nil
}

// open opens the file that is called path now, and ends a line that a crash cut off. The caller holds mu, or is the only
// one.
func (l *Log) open() error {
	file, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file = file
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	last := make([]byte, 1)
	if _, err := file.ReadAt(last, info.Size()-1); err != nil {
		return fmt.Errorf("read the audit log: %w", err)
	}
	if last[0] != '\n' {
		_, err = file.Write([]byte("\n"))
	}
	return err
}

// Append writes one entry. Each is one write to the end of the file, so lines of several writers do not mix.
func (l *Log) Append(e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.follow(); err != nil {
		return err
	}
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	select {
	case l.dirty <- struct{}{}:
	default:
	}
	return nil
}

// follow opens the file anew when another process has put a fresh one in its place, and puts a fresh one there itself
// when the present one is full. The caller holds mu.
func (l *Log) follow() error {
	mine, err := l.file.Stat()
	if err != nil {
		return err
	}
	now, err := os.Stat(l.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, now):
		return l.open()
	case err != nil:
		return err
	case now.Size() < l.options.MaxBytes:
		return nil
	}
	if err := l.lock.Lock(); err != nil {
		return fmt.Errorf("rotate the audit log: %w", err)
	}
	defer func() { _ = l.lock.Unlock() }() // only this process loses it, when it ends
	if now, err = os.Stat(l.path); err != nil || !os.SameFile(mine, now) {
		return l.open() // another process was first
	}
	for n := l.options.Files - 1; n > 0; n-- {
		if err := os.Rename(older(l.path, n-1), older(l.path, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate the audit log: %w", err)
		}
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	return l.open()
}

// older names the nth file: 0 is the present one.
func older(path string, n int) string {
	if n == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, n)
}

func (l *Log) syncer() {
	for {
		select {
		case <-l.done:
			return
		case <-l.dirty:
		}
		l.mu.Lock()
		_ = l.file.Sync() // the next write reports what is wrong with the disk
		l.mu.Unlock()
		select {
		case <-l.done:
			return
		case <-time.After(syncEvery):
		}
	}
}

// Close makes everything durable and lets go of the file.
func (l *Log) Close() error {
	close(l.done)
	l.wait.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.file.Sync(), l.file.Close(), l.lock.Close())
}
