// Package transfer copies files and folders between this machine and a VM, over SFTP; the bytes of large files take a
// shorter way (Contents). A file appears whole: it is written under another name in its folder and renamed. A copy of a large file that was interrupted goes on where it stopped, after
// what is there was compared (internal/partial). Nothing is ever written outside of the local destination, whatever names
// and links the VM shows.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"vers/internal/fault"
)

const (
	parallelFiles   = 8
	requestsPerFile = 64 // of 32 KiB, under way at a time
	maxDepth        = 1000
	// LeastResumed is the size of the smallest files whose copy can go on, in bytes. Smaller ones are copied again sooner
	// than they are compared.
	LeastResumed = 8 << 20
	// leastContent is the size of the smallest files that a call of their own is worth, in bytes.
	leastContent = 256 << 10
)

// Contents are the bytes of large files, on a shorter way than SFTP. Paths are absolute.
type Contents interface {
	// Open reads a file from a byte on.
	Open(ctx context.Context, path string, offset int64) (io.ReadCloser, error)
	// Write writes into a file that is there, from a byte on, and ends it after the last one.
	Write(ctx context.Context, path string, offset int64, r io.Reader) error
}

// Copier copies over one SSH connection. Its fields are set before use.
type Copier struct {
	SSH       *ssh.Client
	Contents  Contents // nil: all goes over SFTP
	Recursive bool
	// Failed is told about every file or folder that could not be copied while the rest goes on. It is not called at the
	// same time by several goroutines.
	Failed func(path string, err error)

	Counts Counts

	files  *sftp.Client
	home   func() (string, error) // where relative paths of the VM begin
	mu     sync.Mutex             // around Failed
	failed error                  // the first one
}

// Counts tells how far a copy is.
type Counts struct {
	Files, Folders, Links atomic.Int64 // done
	Unchanged             atomic.Int64 // files that were there already, of Files
	Bytes                 atomic.Int64 // sent or received
	Kept                  atomic.Int64 // bytes that an interrupted copy had left, and of unchanged files
	Size                  atomic.Int64 // of the only file; 0: unknown
}

// New opens SFTP on a connection. Close it before the connection.
func New(client *ssh.Client) (*Copier, error) {
	files, err := sftp.NewClient(client, sftp.UseConcurrentWrites(true), sftp.UseConcurrentReads(true), sftp.MaxConcurrentRequestsPerFile(requestsPerFile))
	if err != nil {
		return nil, fmt.Errorf("open SFTP: %w", err)
	}
	return &Copier{SSH: client, files: files, home: sync.OnceValues(files.Getwd), Failed: func(string, error) {}}, nil
}

// Close ends SFTP, not the connection.
func (c *Copier) Close() error { return c.files.Close() }

// Upload copies a local file or folder into the VM. to is a path there, relative to root's home; one that ends in a slash,
// or is a folder, gets the source under its own name.
func (c *Copier) Upload(ctx context.Context, from, to string) error {
	src, name, info, err := openLocal(from)
	if err != nil {
		return err
	}
	defer src.root.Close()
	if info.IsDir() && !c.Recursive {
		return isFolder(from)
	}
	target, err := placeRemote(c.files, to, localBase(from), info.IsDir())
	if err != nil {
		return err
	}
	return c.run(ctx, src, name, info, remote{c}, target)
}

// Download copies a file or folder of the VM to this machine, by the same rules.
func (c *Copier) Download(ctx context.Context, from, to string) error {
	info, err := c.files.Stat(remotePath(from))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.NotFoundf("'%s' is not in the VM", from)
	}
	if err != nil {
		return fmt.Errorf("'%s' in the VM: %w", from, plain(err))
	}
	if info.IsDir() && !c.Recursive {
		return isFolder(from)
	}
	dst, target, err := placeLocal(to, remoteBase(from), info.IsDir())
	if err != nil {
		return err
	}
	defer dst.root.Close()
	return c.run(ctx, remote{c}, remotePath(from), info, dst, target)
}

// isFolder is the failure of a copy of a folder that was not asked for.
func isFolder(path string) error {
	return fault.Invalidf("'%s' is a folder; copy folders with -r", path)
}

// source is the side that is read. Names are the side's own.
type source interface {
	Lstat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.FileInfo, error)
	Readlink(name string) (string, error)
	Open(name string) (file, error)
	Show(name string) string // for messages
}

// destination is the side that is written.
type destination interface {
	Lstat(name string) (fs.FileInfo, error)
	// Create makes a file that MUST NOT be there yet, for nobody else to read.
	Create(name string) (file, error)
	// Hold opens a file for reading and writing, made if need be, and keeps other copies from it until it is closed.
	Hold(name string) (file, error)
	// Mkdir makes a folder that its owner can write to. One that is there already stays, and can be written to afterwards.
	Mkdir(name string) (made bool, err error)
	Symlink(target, name string) error
	// Rename MUST replace a file or link that has the name.
	Rename(from, to string) error
	Remove(name string) error
	// SetAttrs gives a file or folder the mode and the time of another one, and with replaced its owner.
	SetAttrs(name string, of, replaced fs.FileInfo) error
	Show(name string) string
}

// file is an open one of either side.
type file interface {
	io.ReadWriteSeeker
	io.Closer
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
}

// work is one copy under way.
type work struct {
	*Copier
	ctx   context.Context
	src   source
	dst   destination
	group *errgroup.Group

	folders []folder // whose mode and time are set at the end
}

type folder struct {
	name string
	info fs.FileInfo
}

func (c *Copier) run(ctx context.Context, src source, name string, info fs.FileInfo, dst destination, target string) error {
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(parallelFiles)
	w := &work{Copier: c, ctx: inner, src: src, dst: dst, group: group}
	if !info.IsDir() {
		c.Counts.Size.Store(info.Size())
	}
	err := w.entry(name, target, info, 0)
	err = errors.Join(group.Wait(), err)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, f := range slices.Backward(w.folders) { // those inside first: to set a time after everything below is written
		if setErr := dst.SetAttrs(f.name, f.info, nil); setErr != nil {
			c.fail(dst.Show(f.name), setErr)
		}
	}
	if err == nil {
		err = c.failed
	}
	return err
}

// fail notes what could not be copied.
func (c *Copier) fail(path string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.failed = fmt.Errorf("%s: %w", path, plain(err))
	}
	c.Failed(path, plain(err))
}

// entry copies what has a name. What it returns ends the whole copy; failures of single entries are noted.
func (w *work) entry(name, target string, info fs.FileInfo, depth int) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	switch {
	case depth > maxDepth:
		w.fail(w.src.Show(name), fault.Invalidf("folders are nested more than %d deep", maxDepth))
	case info.Mode().IsRegular():
		w.group.Go(func() error {
			if err := w.file(name, target, info); err != nil {
				return w.failure(name, err)
			}
			w.Counts.Files.Add(1)
			return nil
		})
	case info.IsDir():
		return w.folder(name, target, info, depth)
	case info.Mode()&fs.ModeSymlink != 0:
		if err := w.link(name, target); err != nil {
			return w.failure(name, err)
		}
		w.Counts.Links.Add(1)
	default:
		w.fail(w.src.Show(name), fault.Invalidf("is neither a file, a folder nor a link; left out"))
	}
	return nil
}

// failure notes an error that concerns one entry only; others come back.
func (w *work) failure(name string, err error) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	w.fail(w.src.Show(name), err)
	return nil
}

func (w *work) folder(name, target string, info fs.FileInfo, depth int) error {
	entries, err := w.src.ReadDir(name)
	if err != nil {
		return w.failure(name, err)
	}
	made, err := w.dst.Mkdir(target)
	if err != nil {
		return w.failure(name, err)
	}
	if made || depth > 0 { // the mode of a folder that the user named is the user's
		w.folders = append(w.folders, folder{target, info})
	}
	w.Counts.Folders.Add(1)
	for _, e := range entries {
		if err := checkName(e.Name()); err != nil {
			w.fail(w.src.Show(name), err)
			continue
		}
		if err := w.entry(path.Join(name, e.Name()), path.Join(target, e.Name()), e, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// link makes a symbolic link, in the place of a file or link.
func (w *work) link(name, target string) error {
	to, err := w.src.Readlink(name)
	if err != nil {
		return err
	}
	if there, err := w.dst.Lstat(target); err == nil && there.IsDir() {
		return fault.Conflictf("a folder is at '%s', where a link should be", w.dst.Show(target))
	}
	temp := tempName(target)
	if err := w.dst.Symlink(to, temp); err != nil {
		return err
	}
	if err := w.dst.Rename(temp, target); err != nil {
		_ = w.dst.Remove(temp)
		return err
	}
	return nil
}

// checkName refuses names that are none, as a hostile VM may show, or that this machine cannot have.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fault.Invalidf("holds an entry with the name %q, which no file can have; left out", name)
	case !representable(name):
		return fault.Invalidf("holds an entry with the name %q, which is not possible on this machine; left out", name)
	}
	return nil
}

// plain takes the words of SFTP's status codes off an error, and says of what is not there that it is not found.
func plain(err error) error {
	var status *sftp.StatusError
	switch {
	case errors.Is(err, fs.ErrNotExist) && !fault.Is(err, fault.NotFound):
		return fault.NotFoundf("%w", err)
	case errors.As(err, &status):
		text := strings.TrimSuffix(strings.TrimPrefix(status.Error(), `sftp: "`), `" (SSH_FX_FAILURE)`)
		return fault.New(fault.Internal, "the VM says: %s", text)
	}
	return err
}
