package agent

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

const (
	hostKeyDir = "/etc/ssh"
	rsaBits    = 3072
	// rsaMarker stands for an RSA host key that was removed and whose successor is still being made, so that a guest
	// which is branched in that moment makes its own.
	rsaMarker = "/etc/ssh/.vers-rsa-host-key-wanted"
)

// replaceHostKeys replaces the host keys of the image's own sshd, if it has any. Quick ones are there on return; an RSA
// key is only removed, and rsaKey says that makeRSAKey is due.
func (s *Server) replaceHostKeys(hostname string) (rsaKey bool, err error) {
	files, err := filepath.Glob(s.path(hostKeyDir + "/ssh_host_*_key"))
	if err != nil {
		return false, err
	}
	for _, file := range files {
		switch kind := filepath.Base(file); kind {
		case "ssh_host_ed25519_key":
			_, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return false, err
			}
			err = writeHostKey(file, key, hostname)
			if err != nil {
				return false, err
			}
		case "ssh_host_ecdsa_key":
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return false, err
			}
			if err := writeHostKey(file, key, hostname); err != nil {
				return false, err
			}
		default:
			// RSA is made again later. Others are of kinds that no current sshd offers.
			if kind == "ssh_host_rsa_key" {
				if err := os.WriteFile(s.path(rsaMarker), nil, 0o600); err != nil {
					return false, err
				}
			}
			if err := removeHostKey(file); err != nil {
				return false, err
			}
		}
	}
	if _, err := os.Stat(s.path(rsaMarker)); err == nil {
		rsaKey = true
	}
	if len(files) > 0 {
		s.reloadSSHD()
	}
	return rsaKey, nil
}

func removeHostKey(file string) error {
	if err := os.Remove(file); err != nil {
		return err
	}
	if err := os.Remove(file + ".pub"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func writeHostKey(file string, key crypto.Signer, hostname string) error {
	comment := "root@" + hostname
	block, err := ssh.MarshalPrivateKey(key, comment)
	if err != nil {
		return err
	}
	pub, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := replaceFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	line := append(bytes.TrimSpace(ssh.MarshalAuthorizedKey(pub)), " "+comment+"\n"...)
	return replaceFile(file+".pub", line, 0o644)
}

// makeRSAKey makes the RSA host key for the image's sshd. That takes seconds of computing, so it yields to all else.
func (s *Server) makeRSAKey(hostname string, generation int64) error {
	type result struct {
		key *rsa.PrivateKey
		err error
	}
	made := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its low priority
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 19)
		key, err := rsa.GenerateKey(rand.Reader, rsaBits)
		made <- result{key, err}
	}()
	r := <-made
	if r.err != nil {
		return r.err
	}
	if _, now := s.identity.current(); now != generation {
		// The guest was branched meanwhile. Half of this key may be known to the other side; a new one is on its way.
		return nil
	}
	if err := writeHostKey(s.path(hostKeyDir+"/ssh_host_rsa_key"), r.key, hostname); err != nil {
		return err
	}
	if err := os.Remove(s.path(rsaMarker)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.reloadSSHD()
	return nil
}

// reloadSSHD makes the image's sshd read its host keys again, if it runs.
func (s *Server) reloadSSHD() {
	pid := s.findSSHD()
	if pid == 0 {
		return
	}
	if err := unix.Kill(pid, syscall.SIGHUP); err != nil {
		s.log.Warn("cannot make sshd read its new host keys", "pid", pid, "error", err)
	}
}

func (s *Server) findSSHD() int {
	for _, file := range []string{"/run/sshd.pid", "/var/run/sshd.pid"} {
		data, err := os.ReadFile(s.path(file))
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && s.isSSHD(pid) {
			return pid
		}
	}
	names, err := filepath.Glob(s.path("/proc/[0-9]*"))
	if err != nil {
		return 0
	}
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err == nil && s.isSSHD(pid) {
			return pid
		}
	}
	return 0
}

// isSSHD reports whether pid is a listening sshd, not one that serves a session: its parent is the first process.
func (s *Server) isSSHD(pid int) bool {
	stat, err := os.ReadFile(s.path(fmt.Sprintf("/proc/%d/stat", pid)))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(stat), "(sshd) ")
	fields := strings.Fields(rest)
	return ok && len(fields) > 1 && fields[1] == "1"
}
