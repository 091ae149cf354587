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
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
	"vers/internal/guest"
)

// unpack writes the entries of an archive, which comes as data frames.
func (s *Server) unpack(conn net.Conn, body json.RawMessage) error {
	var req guest.UnpackRequest
	if err := decode(body, &req); err != nil {
		return err
	}
	u, err := s.unpacker(req)
	if err != nil {
		return err
	}
	if err := accept(conn, nil); err != nil {
		return nil
	}
	input := &frameInput{frames: guest.NewFrameReader(bufio.NewReaderSize(conn, guest.MaxChunk))}
	failed := u.all(tar.NewReader(input))
	if _, err := io.Copy(io.Discard, input); err != nil {
		return nil // the client is gone
	}
	out := guest.NewFrameWriter(conn)
	if failed != nil {
		_ = out.WriteJSON(guest.FrameError, guest.ToWire(failed))
	} else {
		_ = out.Write(guest.FrameDone)
	}
	finish(conn, nil)
	return nil
}

// frameInput reads what data frames hold, up to the frame that ends them.
type frameInput struct {
	frames *guest.FrameReader
	rest   []byte
	err    error
}

func (f *frameInput) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.err != nil {
			return 0, f.err
		}
		frame, err := f.frames.Next()
		switch {
		case err != nil:
			f.err = io.ErrUnexpectedEOF
		case frame.Type == guest.FrameEOF:
			f.err = io.EOF
		case frame.Type == guest.FrameData:
			f.rest = frame.Payload
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// unpacker writes entries below base.
type unpacker struct {
	s        *Server
	base     string // of the guest
	owned    bool   // everything belongs to uid and gid
	uid, gid int
}

func (s *Server) unpacker(req guest.UnpackRequest) (*unpacker, error) {
	if err := checkPath(req.Path); err != nil {
		return nil, err
	}
	if strings.ContainsRune(req.Into, '/') || req.Into == ".." {
		return nil, fault.Invalidf("%q is not the name of a file", req.Into)
	}
	u := &unpacker{s: s, owned: req.Owner != ""}
	var err error
	if u.owned {
		if u.uid, u.gid, err = lookupOwner(s.config.Root, req.Owner); err != nil {
			return nil, err
		}
	}
	if u.base, err = s.resolve(req.Path, true, nil); err != nil {
		return nil, err
	}
	if req.Into != "" && isDir(s.host(u.base)) {
		u.base = path.Join(u.base, req.Into)
	}
	return u, nil
}

func (u *unpacker) all(archive *tar.Reader) error {
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fault.Invalidf("the archive cannot be read: %w", err)
		}
		if err := u.one(h, archive); err != nil {
			if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
				return fault.Exhaustedf("write %s in the VM: its disk is full (%w); give it a larger one", path.Join(u.base, h.Name), err)
			}
			return err
		}
	}
}

// one writes an entry.
func (u *unpacker) one(h *tar.Header, content io.Reader) error {
	name := path.Clean(h.Name)
	if path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") || strings.ContainsRune(name, 0) {
		return fault.Invalidf("the archive has the name %.200q, which leads out of its folder", h.Name)
	}
	full := path.Join(u.base, name)
	target, err := u.s.resolve(full, h.Typeflag == tar.TypeDir, nil)
	if err != nil {
		return err
	}
	uid, gid := h.Uid, h.Gid
	if u.owned {
		uid, gid = u.uid, u.gid
	}
	if h.Typeflag == tar.TypeDir {
		existed := isDir(u.s.host(target))
		if err := u.s.makeDirs(target, u.uid, u.gid); err != nil || name == "." && existed {
			return err
		}
		return u.s.dress(u.s.host(target), h, uid, gid)
	}
	// The folder is resolved without the last part, which is replaced and not followed.
	if target, err = u.s.resolve(path.Dir(full), true, nil); err != nil {
		return err
	}
	if err := u.s.makeDirs(target, u.uid, u.gid); err != nil {
		return err
	}
	target = path.Join(target, path.Base(full))
	if info, err := os.Lstat(u.s.host(target)); err == nil && info.IsDir() {
		return fault.Invalidf("%s in the VM is a directory, and a file is to be written there", target)
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(u.s.host(target), h, content, uid, gid)
	case tar.TypeSymlink:
		return u.link(u.s.host(target), h, uid, gid)
	}
	return fault.Invalidf("%.200q in the archive is neither file, folder nor symbolic link", h.Name)
}

func (u *unpacker) file(target string, h *tar.Header, content io.Reader, uid, gid int) (err error) {
	temp, err := os.CreateTemp(path.Dir(target), ".vers-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	_, err = io.Copy(temp, content)
	if err = errors.Join(err, temp.Close()); err != nil {
		return err
	}
	if err := u.s.dress(temp.Name(), h, uid, gid); err != nil {
		return err
	}
	if err := os.Chtimes(temp.Name(), h.ModTime, h.ModTime); err != nil {
		return err
	}
	return os.Rename(temp.Name(), target)
}

func (u *unpacker) link(target string, h *tar.Header, uid, gid int) error {
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(h.Linkname, target); err != nil {
		return err
	}
	return chown(target, uid, gid)
}

// chown gives a file its owner. A guest's agent is root; one that serves tests as somebody else cannot give files away.
func chown(target string, uid, gid int) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(target, uid, gid)
}

// xattrPrefix is how archives carry extended attributes.
const xattrPrefix = "SCHILY.xattr."

// carried says which extended attributes go along with files. The others belong to the system that the file is on.
func carried(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "system.posix_acl_")
}

// dress gives a file its owner, mode and attributes, in this order: a new owner takes set-id bits and capabilities away.
func (s *Server) dress(target string, h *tar.Header, uid, gid int) error {
	if err := chown(target, uid, gid); err != nil {
		return err
	}
	if err := unix.Chmod(target, uint32(h.Mode)&0o7777); err != nil {
		return &fs.PathError{Op: "chmod", Path: target, Err: err}
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || !carried(name) {
			continue
		}
		if err := unix.Lsetxattr(target, name, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set the attribute %s of %s: %w", name, target, err)
		}
	}
	return nil
}
