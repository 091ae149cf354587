package agent

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
	"vers/internal/guest"
)

// pack sends files and folders as an archive in data frames.
func (s *Server) pack(conn net.Conn, body json.RawMessage) error {
	var req guest.PackRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	if len(req.Paths) == 0 {
		return fault.Invalidf("no paths are given")
	}
	for _, p := range req.Paths {
		if err := checkPath(p); err != nil {
			return err
		}
	}
	if err := accept(conn, nil); err != nil {
		return nil
	}
	out := guest.NewFrameWriter(conn)
	buffered := bufio.NewWriterSize(frameOutput{out}, guest.MaxChunk)
	p := &packer{s: s, out: tar.NewWriter(buffered), done: map[string]bool{}}
	err := p.all(req.Paths)
	if err == nil {
		err = errors.Join(p.out.Close(), buffered.Flush())
	}
	if err != nil {
		_ = out.WriteJSON(guest.FrameError, guest.ToWire(err))
	} else {
		_ = out.Write(guest.FrameEOF)
	}
	finish(conn, nil)
	return nil
}

// frameOutput writes data frames.
type frameOutput struct{ frames *guest.FrameWriter }

func (f frameOutput) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), guest.MaxChunk)
		if err := f.frames.Write(guest.FrameData, rest[:n]); err != nil {
			return len(p) - len(rest), err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

type packer struct {
	s    *Server
	out  *tar.Writer
	done map[string]bool // links that are in it
}

func (p *packer) all(patterns []string) error {
	for _, pattern := range patterns {
		names, err := p.glob(pattern)
		if err != nil {
			return err
		}
		for _, name := range names {
			target, err := p.resolve(name)
			if err != nil {
				return err
			}
			if err := p.tree(target); err != nil {
				return err
			}
		}
	}
	return nil
}

// resolve follows a path and writes the links on it.
func (p *packer) resolve(name string) (target string, err error) {
	var failed error
	target, err = p.s.resolve(name, true, func(link, to string) {
		if p.done[link] || failed != nil {
			return
		}
		p.done[link] = true
		failed = p.out.WriteHeader(&tar.Header{Name: strings.TrimPrefix(link, "/"), Linkname: to, Typeflag: tar.TypeSymlink, Mode: 0o777, Format: tar.FormatPAX})
	})
	return target, errors.Join(err, failed)
}

// glob gives the paths that a pattern matches: part by part, since a link in the middle leads from the guest's root.
func (p *packer) glob(pattern string) ([]string, error) {
	found := []string{"/"}
	for part := range strings.SplitSeq(strings.Trim(path.Clean(pattern), "/"), "/") {
		if part == "" {
			continue
		}
		var next []string
		for _, base := range found {
			dir, err := p.resolve(base)
			if err != nil {
				return nil, err
			}
			if _, err := os.Lstat(p.s.host(path.Join(dir, part))); err == nil {
				next = append(next, path.Join(base, part))
				continue
			}
			entries, err := os.ReadDir(p.s.host(dir))
			if err != nil {
				continue // no folder: nothing in it
			}
			for _, e := range entries {
				matched, err := path.Match(part, e.Name())
				if err != nil {
					return nil, fault.Invalidf("%q is no pattern: %w", pattern, err)
				}
				if matched {
					next = append(next, path.Join(base, e.Name()))
				}
			}
		}
		found = next
	}
	return found, nil
}

// tree writes a file, or a folder with what is in it. Other file systems, sockets, pipes and devices are left out.
func (p *packer) tree(name string) error {
	top := p.s.host(name)
	var device uint64
	return filepath.WalkDir(top, func(at string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("look at %s: no owner", at)
		}
		if at == top {
			device = stat.Dev
		}
		rel, err := filepath.Rel(p.s.config.Root, at)
		if err != nil {
			return err
		}
		if err := p.entry(rel, at, info, stat); err != nil {
			return err
		}
		if stat.Dev != device && info.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
}

func (p *packer) entry(name, at string, info fs.FileInfo, stat *syscall.Stat_t) error {
	h := &tar.Header{Name: name, Mode: int64(stat.Mode & 0o7777), Uid: int(stat.Uid), Gid: int(stat.Gid), ModTime: info.ModTime(), Format: tar.FormatPAX}
	switch {
	case info.IsDir():
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(at)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		return p.out.WriteHeader(h)
	case !info.Mode().IsRegular():
		return nil
	default:
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
	}
	if err := addAttributes(h, at); err != nil {
		return err
	}
	if err := p.out.WriteHeader(h); err != nil || h.Typeflag == tar.TypeDir {
		return err
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	n, err := io.Copy(p.out, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		err = fault.Conflictf("%s in the VM became shorter while it was read", at)
	}
	return err
}

// addAttributes reads a file's extended attributes.
func addAttributes(h *tar.Header, at string) error {
	size, err := unix.Llistxattr(at, nil)
	if err != nil || size == 0 {
		return nil // this file system has none
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(at, list); err != nil {
		return nil
	}
	for name := range strings.SplitSeq(string(list[:size]), "\x00") {
		if !carried(name) {
			continue
		}
		value := make([]byte, 64<<10) // the kernel's limit
		n, err := unix.Lgetxattr(at, name, value)
		if err != nil {
			return fmt.Errorf("read the attribute %s of %s: %w", name, at, err)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+name] = string(slices.Clone(value[:n]))
	}
	return nil
}
