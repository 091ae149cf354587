package transfer

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"sync/atomic"

	"vers/internal/fault"
	"vers/internal/partial"
)

// file copies one file, by way of another name.
func (w *work) file(name, target string, info fs.FileInfo) error {
	there, err := w.dst.Lstat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		there = nil
	case err != nil:
		return err
	case !there.Mode().IsRegular() && there.Mode()&fs.ModeSymlink == 0:
		return fault.Conflictf("'%s' is there and is no file", w.dst.Show(target))
	case !there.Mode().IsRegular():
		there = nil // a link, to be replaced
	}
	src, err := w.src.Open(name)
	if err != nil {
		return err
	}
	defer src.Close()
	if now, err := src.Stat(); err != nil || !now.Mode().IsRegular() {
		return errors.Join(err, fault.Conflictf("has become something else than a file"))
	}
	if there != nil && w.unchanged(src, name, target, info, there) {
		w.Counts.Unchanged.Add(1)
		w.Counts.Kept.Add(info.Size())
		return w.dst.SetAttrs(target, info, there)
	}
	temp, dst, err := w.begin(src, name, target, info)
	if err != nil {
		return err
	}
	err = w.pour(dst, src, name, temp, info.Size())
	keep := err != nil && temp == partName(target)
	if err == nil {
		err = w.dst.SetAttrs(temp, info, there)
	}
	if err == nil {
		err = w.dst.Rename(temp, target)
	}
	if err != nil && !keep {
		_ = w.dst.Remove(temp)
	}
	return errors.Join(err, dst.Close()) // after the renaming: it is held until then
}

// unchanged reports whether a file is there already, of the same size, time and content.
func (w *work) unchanged(src file, name, target string, info, there fs.FileInfo) bool {
	if info.Size() < LeastResumed || there.Size() != info.Size() || there.ModTime().Unix() != info.ModTime().Unix() {
		return false
	}
	opened, err := w.open(target)
	if err != nil {
		return false
	}
	defer opened.Close()
	same, err := w.same(src, opened, name, target, info.Size())
	return err == nil && same == info.Size()
}

// open opens a file of the destination for comparing, if it is a local one: the VM's own are compared in the VM.
func (w *work) open(name string) (io.ReadSeekCloser, error) {
	if l, ok := w.dst.(*local); ok {
		return l.Open(name)
	}
	return nopFile{}, nil
}

type nopFile struct{ io.ReadSeeker }

func (nopFile) Close() error { return nil }

// begin opens the file that is written, and sets both files to where the copy goes on.
func (w *work) begin(src file, name, target string, info fs.FileInfo) (temp string, dst file, err error) {
	if info.Size() >= LeastResumed {
		temp = partName(target)
		if dst, err = w.dst.Hold(temp); err == nil {
			if err = w.goOn(src, dst, name, temp, info.Size()); err != nil {
				dst.Close()
			}
			return temp, dst, err
		}
		// Held by another copy, or a guest of an older agent: without going on later, then.
	}
	temp = tempName(target)
	dst, err = w.dst.Create(temp)
	return temp, dst, err
}

// goOn keeps of a file what is the same as in the source.
func (w *work) goOn(src, dst file, name, temp string, size int64) error {
	there, err := dst.Stat()
	if err != nil {
		return err
	}
	var kept int64
	if n := min(there.Size(), size); n > 0 {
		if kept, err = w.same(src, dst, name, temp, n); err != nil {
			return err
		}
	}
	if err := dst.Truncate(kept); err != nil {
		return err
	}
	for _, f := range []file{src, dst} {
		if _, err := f.Seek(kept, io.SeekStart); err != nil {
			return err
		}
	}
	w.Counts.Kept.Add(kept)
	return nil
}

// same gives how many of the first n bytes of source and destination agree. The local one is read here, the other one in
// the VM.
func (w *work) same(src file, dst io.ReadSeeker, name, target string, n int64) (int64, error) {
	here, there := io.ReadSeeker(src), target
	if _, downloading := w.dst.(*local); downloading {
		here, there = dst, name
	}
	if _, err := here.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	next, end, err := w.ask(partial.Request{Op: partial.OpDigests, Path: there, Bytes: n})
	if err != nil {
		return 0, err
	}
	defer end()
	return partial.Match(stopping{w.ctx, here}, n, next)
}

// pour copies the content, from where both files are.
func (w *work) pour(dst, src file, name, temp string, size int64) error {
	at, err := src.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	large := w.Contents != nil && size-at >= leastContent
	switch _, upload := w.dst.(remote); {
	case large && upload:
		return w.send(w.ctx, src, temp, at)
	case large:
		return w.receive(w.ctx, name, at, dst)
	case upload:
		return w.sendSlow(w.ctx, src, dst)
	}
	return receiveSlow(w.ctx, src, dst, &w.Counts.Bytes)
}

// send writes what r gives to a file of the VM that is there.
func (c *Copier) send(ctx context.Context, r io.Reader, to string, offset int64) error {
	path, err := c.absolute(to)
	if err != nil {
		return err
	}
	return c.Contents.Write(ctx, path, offset, io.TeeReader(stopping{ctx, r}, counter{&c.Counts.Bytes}))
}

// receive writes a file of the VM to w.
func (c *Copier) receive(ctx context.Context, from string, offset int64, w io.Writer) error {
	path, err := c.absolute(from)
	if err != nil {
		return err
	}
	content, err := c.Contents.Open(ctx, path, offset)
	if err != nil {
		return err
	}
	defer content.Close()
	_, err = io.Copy(io.MultiWriter(refusing{ctx, w}, counter{&c.Counts.Bytes}), content)
	return err
}

// sendSlow is send over SFTP, to an open file.
func (c *Copier) sendSlow(ctx context.Context, r io.Reader, to file) error {
	concurrent := to.(interface {
		ReadFromWithConcurrency(r io.Reader, concurrency int) (int64, error)
	})
	_, err := concurrent.ReadFromWithConcurrency(io.TeeReader(stopping{ctx, r}, counter{&c.Counts.Bytes}), requestsPerFile)
	return err
}

// receiveSlow is receive over SFTP, from an open file.
func receiveSlow(ctx context.Context, from file, w io.Writer, counted *atomic.Int64) error {
	_, err := from.(io.WriterTo).WriteTo(io.MultiWriter(refusing{ctx, w}, counter{counted}))
	return err
}

// absolute gives the absolute path of a file of the VM.
func (c *Copier) absolute(name string) (string, error) {
	if path.IsAbs(name) {
		return name, nil
	}
	home, err := c.home()
	return path.Join(home, name), err
}

// stopping is a reader that ends with a context.
type stopping struct {
	ctx context.Context
	r   io.Reader
}

func (s stopping) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}

// refusing is a writer that ends with a context.
type refusing struct {
	ctx context.Context
	w   io.Writer
}

func (r refusing) Write(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.w.Write(p)
}

// counter counts what is written to it.
type counter struct{ n interface{ Add(int64) int64 } }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// partName is the name of an unfinished copy that may go on. It is of the same length whatever the file's.
func partName(target string) string {
	sum := sha256.Sum256([]byte(path.Base(target)))
	return path.Join(path.Dir(target), ".vers-"+hex.EncodeToString(sum[:8])+".part")
}

// tempName is a name for what is renamed to target.
func tempName(target string) string {
	var random [8]byte
	_, _ = rand.Read(random[:])
	return path.Join(path.Dir(target), ".vers-"+hex.EncodeToString(random[:])+".tmp")
}

// abandoned gives what r does until ctx ends, also while r waits for somebody who writes nothing.
func abandoned(ctx context.Context, r io.Reader) io.Reader {
	out, in := io.Pipe()
	stop := context.AfterFunc(ctx, func() { in.CloseWithError(context.Cause(ctx)) })
	go func() {
		_, err := io.Copy(in, r)
		stop()
		in.CloseWithError(err)
	}()
	return out
}

// UploadStream copies what r gives into a file of the VM.
func (c *Copier) UploadStream(ctx context.Context, r io.Reader, to string) error {
	target, err := placeRemote(c.files, to, "", false)
	if err != nil {
		return err
	}
	dst := remote{c}
	mode := fs.FileMode(0o644)
	there, err := dst.Lstat(target)
	if err == nil {
		if mode = there.Mode(); !mode.IsRegular() {
			return fault.Conflictf("'%s' is there and is no file", dst.Show(target))
		}
	}
	temp := tempName(target)
	f, err := dst.Create(temp)
	if err != nil {
		return plain(err)
	}
	input := abandoned(ctx, r)
	if c.Contents != nil {
		err = c.send(ctx, input, temp, 0)
	} else {
		err = c.sendSlow(ctx, input, f)
	}
	if err == nil {
		err = dst.setAttrs(temp, mode, there)
	}
	if err == nil {
		err = dst.Rename(temp, target)
	}
	if err != nil {
		_ = dst.Remove(temp)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	} else {
		c.Counts.Files.Add(1)
	}
	return errors.Join(plain(err), f.Close())
}

// DownloadStream copies a file of the VM to w.
func (c *Copier) DownloadStream(ctx context.Context, from string, w io.Writer) error {
	info, err := c.files.Stat(remotePath(from))
	if err != nil {
		return plain(err)
	}
	if info.IsDir() {
		return fault.Invalidf("'%s' is a folder, which cannot be written to standard output", from)
	}
	f, err := c.files.Open(remotePath(from))
	if err != nil {
		return plain(err)
	}
	defer f.Close()
	c.Counts.Size.Store(info.Size())
	if c.Contents != nil && info.Size() >= leastContent {
		err = c.receive(ctx, remotePath(from), 0, w)
	} else {
		err = receiveSlow(ctx, f, w, &c.Counts.Bytes)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		c.Counts.Files.Add(1)
	}
	return plain(err)
}

var _ file = (*os.File)(nil)
