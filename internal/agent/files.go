package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"vers/internal/fault"
	"vers/internal/guest"
)

const defaultFileMode = 0o644

func checkPath(path string) error {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return fault.Invalidf("file path %q is not absolute: start it with '/'", path)
	}
	return nil
}

// readFile sends a file as data frames.
func (s *Server) readFile(conn net.Conn, body json.RawMessage) error {
	var req guest.FileRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	if err := checkPath(req.Path); err != nil {
		return err
	}
	// O_NONBLOCK: opening a named pipe must not wait for its writer.
	file, err := os.OpenFile(req.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return fault.NotFoundf("no file %s in the VM", req.Path)
	}
	if err != nil {
		return fault.Invalidf("open %s in the VM: %w", req.Path, err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", req.Path, err)
	}
	if info.IsDir() {
		return fault.Invalidf("%s in the VM is a directory, not a file", req.Path)
	}
	if !info.Mode().IsRegular() {
		return fault.Invalidf("%s in the VM is no regular file", req.Path)
	}
	if err := seek(file, req); err != nil {
		return err
	}
	err = accept(conn, guest.FileInfo{Path: req.Path, Size: info.Size(), Mode: info.Mode().Perm(), ModTime: info.ModTime()})
	if err != nil {
		return nil
	}
	out := guest.NewFrameWriter(conn)
	buf := buffers.Get().(*[guest.MaxChunk]byte)
	defer buffers.Put(buf)
	for {
		n, rerr := file.Read(buf[:])
		if n > 0 && out.Write(guest.FrameData, buf[:n]) != nil {
			return nil
		}
		if errors.Is(rerr, io.EOF) {
			_ = out.Write(guest.FrameEOF)
			break
		}
		if rerr != nil {
			_ = out.WriteJSON(guest.FrameError, guest.ToWire(fmt.Errorf("read %s: %w", req.Path, rerr)))
			break
		}
	}
	finish(conn, nil)
	return nil
}

// seek goes to where a request begins.
func seek(file *os.File, req guest.FileRequest) error {
	if req.Offset == 0 {
		return nil
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if req.Offset < 0 || req.Offset > info.Size() {
		return fault.Invalidf("offset %d is not in %s in the VM, which has %d bytes", req.Offset, req.Path, info.Size())
	}
	_, err = file.Seek(req.Offset, io.SeekStart)
	return err
}

// writeFile takes data frames into a new file and puts it in place when they are complete; or into the file that is there.
func (s *Server) writeFile(conn net.Conn, body json.RawMessage) error {
	var req guest.FileRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	if err := checkPath(req.Path); err != nil {
		return err
	}
	target, err := openTarget(req)
	if err != nil {
		return err
	}
	defer target.abort()
	if err := accept(conn, nil); err != nil {
		return nil
	}
	var failed error
	frames := guest.NewFrameReader(bufio.NewReaderSize(conn, guest.MaxChunk))
	for {
		frame, err := frames.Next()
		if err != nil {
			return nil // incomplete: the file is not touched
		}
		if frame.Type == guest.FrameEOF {
			break
		}
		if frame.Type == guest.FrameData && failed == nil {
			// After a failure the rest is read and dropped, so that the client comes to reading the error.
			_, failed = target.file.Write(frame.Payload)
		}
	}
	if failed == nil {
		failed = target.commit()
	}
	out := guest.NewFrameWriter(conn)
	if failed != nil {
		kind := fault.Internal
		if errors.Is(failed, syscall.ENOSPC) || errors.Is(failed, syscall.EDQUOT) {
			kind = fault.Exhausted
		}
		_ = out.WriteJSON(guest.FrameError, guest.ToWire(fault.New(kind, "write %s in the VM: %w", req.Path, failed)))
	} else {
		_ = out.Write(guest.FrameDone)
	}
	finish(conn, nil)
	return nil
}

// target is a file that is being written.
type target struct {
	path string // where it goes
	file *os.File
	temp string // "" when written in place
	mode fs.FileMode
	cut  bool // the file ends where the writing does
}

func openTarget(req guest.FileRequest) (*target, error) {
	t := &target{path: req.Path, mode: req.Mode.Perm()}
	if t.mode == 0 {
		t.mode = defaultFileMode
	}
	if final, err := filepath.EvalSymlinks(req.Path); err == nil {
		t.path = final // a link stays a link
	}
	info, err := os.Stat(t.path)
	exists := err == nil
	switch {
	case exists && info.IsDir():
		return nil, fault.Invalidf("%s in the VM is a directory, not a file", req.Path)
	case exists && !info.Mode().IsRegular():
		return nil, fault.Invalidf("%s in the VM is no regular file", req.Path)
	}
	if req.InPlace {
		return t.openInPlace(req)
	}
	if req.Offset != 0 {
		return nil, fault.Invalidf("an offset is for writing in place, into a file that is there")
	}
	dir := filepath.Dir(t.path)
	if req.CreateDirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fault.Invalidf("make directory %s in the VM: %w", dir, err)
		}
	}
	if !isDir(dir) {
		return nil, fault.NotFoundf("no directory %s in the VM: create it first, or ask for it with create_dirs", dir)
	}
	t.file, err = os.CreateTemp(dir, ".vers-*")
	if err == nil {
		t.temp = t.file.Name()
		return t, nil
	}
	if exists { // /proc, /sys: files can be written but not made
		if t.file, err = os.OpenFile(t.path, os.O_WRONLY|os.O_TRUNC, 0); err == nil {
			return t, nil
		}
	}
	if errors.Is(err, syscall.ENOSPC) {
		return nil, fault.Exhaustedf("write %s in the VM: %w", req.Path, err)
	}
	return nil, fault.Invalidf("write %s in the VM: %w", req.Path, err)
}

// openInPlace opens the file that is there, at the offset.
func (t *target) openInPlace(req guest.FileRequest) (*target, error) {
	file, err := os.OpenFile(t.path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fault.NotFoundf("no file %s in the VM to be written in place", req.Path)
	}
	if err != nil {
		return nil, fault.Invalidf("open %s in the VM: %w", req.Path, err)
	}
	if err := seek(file, req); err != nil {
		_ = file.Close()
		return nil, err
	}
	t.file, t.cut = file, true
	return t, nil
}

func (t *target) commit() error {
	if t.temp == "" {
		return t.commitInPlace()
	}
	if err := t.file.Chmod(t.mode); err != nil {
		return err
	}
	err := t.file.Close()
	t.file = nil
	if err != nil {
		return err
	}
	if err := os.Rename(t.temp, t.path); err != nil {
		return err
	}
	t.temp = ""
	return nil
}

func (t *target) commitInPlace() error {
	var err error
	if t.cut {
		var end int64
		if end, err = t.file.Seek(0, io.SeekCurrent); err == nil {
			err = t.file.Truncate(end)
		}
	}
	err = errors.Join(err, t.file.Close())
	t.file = nil
	return err
}

// abort removes what was not committed.
func (t *target) abort() {
	if t.file != nil {
		_ = t.file.Close()
	}
	if t.temp != "" {
		_ = os.Remove(t.temp)
	}
}
