package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"vers/internal/partial"
)

// subsystem serves files as root: sftp, or the comparison of files that were copied in part.
func (sess *session) subsystem(name string) bool {
	if sess.busy || name != "sftp" && name != partial.Subsystem {
		return false
	}
	sess.busy = true
	acc, err := lookupAccount(sess.server.config.Root, "")
	if err != nil {
		return false
	}
	dir := acc.home
	if !isDir(dir) {
		dir = "/"
	}
	serve := func() error { return sess.partial(dir) }
	if name == "sftp" {
		server, err := sftp.NewServer(&linkChannel{Channel: sess.channel, dir: dir}, sftp.WithServerWorkingDirectory(dir))
		if err != nil {
			return false
		}
		serve = server.Serve // closing the server would close the channel, before the status is sent
	}
	sess.begin = func() {
		code := 0
		if err := serve(); err != nil && !errors.Is(err, io.EOF) {
			sess.server.log.Info("file session ended", "subsystem", name, "error", err)
			code = 1
		}
		sess.exit(code, "")
	}
	return true
}

func (sess *session) partial(dir string) error {
	return partial.Serve(sess.channel, func(path string) string { return below(dir, path) })
}

// below makes a path absolute that is taken from dir.
func below(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// Of the SFTP protocol, version 3.
const (
	packetSetstat  = 9
	packetSymlink  = 20
	maxSymlinkSize = 16 << 10 // two paths
)

// linkChannel makes the symbolic links that the client asks for as they are. pkg/sftp takes the target of a link for a
// path of the server's and puts the working directory before a relative one.
type linkChannel struct {
	ssh.Channel
	dir   string       // working directory
	ready bytes.Buffer // to be read first
	rest  uint32       // bytes of the packet that goes through
}

func (l *linkChannel) Read(p []byte) (int, error) {
	if l.ready.Len() > 0 {
		return l.ready.Read(p)
	}
	if l.rest == 0 {
		if err := l.next(); err != nil {
			return 0, err
		}
		return l.ready.Read(p)
	}
	n, err := l.Channel.Read(p[:min(uint32(len(p)), l.rest)])
	l.rest -= uint32(n)
	return n, err
}

// next reads the beginning of a packet, and all of it if it is about a link.
func (l *linkChannel) next() error {
	head := make([]byte, 5) // length of what follows, type
	if _, err := io.ReadFull(l.Channel, head); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(head)
	if length == 0 || head[4] != packetSymlink || length > maxSymlinkSize {
		l.ready.Write(head)
		l.rest = max(length, 1) - 1
		return nil
	}
	body := make([]byte, length-1)
	if _, err := io.ReadFull(l.Channel, body); err != nil {
		return err
	}
	var req struct {
		ID           uint32
		Target, Path string
	}
	if ssh.Unmarshal(body, &req) == nil && !filepath.IsAbs(req.Target) && os.Symlink(req.Target, below(l.dir, req.Path)) == nil {
		// The server answers that to change nothing has succeeded. After a failure it fails the same way.
		body = ssh.Marshal(&struct {
			ID    uint32
			Path  string
			Flags uint32
		}{req.ID, "/", 0})
		head[4] = packetSetstat
		binary.BigEndian.PutUint32(head, uint32(len(body)+1))
	}
	l.ready.Write(head)
	l.ready.Write(body)
	return nil
}
