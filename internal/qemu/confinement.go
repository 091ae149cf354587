package qemu

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// confinement is how much of design section 5 the host allows. no_new_privs, the seccomp sandbox, no capabilities, no
// core dumps and closed descriptors hold in all of them.
type confinement string

const (
	confinedAsRoot confinement = "root" // own user, namespaces, empty bounding set
	confinedAsUser confinement = "user" // namespaces by way of a user namespace; the user stays ours
	unconfined     confinement = "none" // no namespaces at all
	confineTrial               = 10 * time.Second
)

func (c confinement) namespaces() bool { return c != unconfined }

// capable: the launcher starts with capabilities that must be dropped.
func (c confinement) capable() bool { return c != unconfined }

// attributes are those of the launcher process.
func (c confinement) attributes(pidfd *int) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true, PidFD: pidfd}
	if c.namespaces() {
		attr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	if c == confinedAsUser {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		// User 0 inside, so that the launcher keeps its capabilities over its exec; it drops them itself.
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// findConfinement tries, strongest first, what works here, and says in words what does not.
func findConfinement(ctx context.Context, launcher []string) (confinement, []string, error) {
	var lost, why []string
	for _, c := range []confinement{confinedAsRoot, confinedAsUser, unconfined} {
		if c == confinedAsRoot && os.Geteuid() != 0 {
			lost = append(lost, "QEMU runs as the user of versd, not as one of its own for each VM: start versd as root")
			continue
		}
		err := tryConfinement(ctx, launcher, c)
		if err == nil {
			return c, lost, nil
		}
		why = append(why, fmt.Sprintf("as %s: %v", c, err))
		switch c {
		case confinedAsRoot:
			lost = append(lost, fmt.Sprintf("QEMU runs as root without capabilities, not as a user of its own for each VM: versd may not make mount and network namespaces (%v)", err))
		case confinedAsUser:
			lost = append(lost, fmt.Sprintf("QEMU sees the host's files and network as versd's user does: user namespaces are not allowed here (%v)", err))
		}
	}
	return "", nil, fmt.Errorf("start a confined process: %s", strings.Join(why, "; "))
}

// tryConfinement runs the launcher with nothing to start.
func tryConfinement(ctx context.Context, launcher []string, c confinement) error {
	ctx, cancel := context.WithTimeout(ctx, confineTrial)
	defer cancel()
	dir, err := os.MkdirTemp("", "vers-confinement-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var said bytes.Buffer
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	process, err := startLauncher(launcher, launchPlan{Confinement: c, Dir: dir, UID: 65534, GID: 65534}, int(w.Fd()), int(w.Fd()))
	w.Close()
	if err != nil {
		return err
	}
	defer process.release()
	if err := process.wait(ctx); err != nil {
		_ = process.kill()
		<-process.done
		return err
	}
	_, _ = said.ReadFrom(r) // the other end is closed: it ends at once
	if process.exitCode() != 0 {
		return fmt.Errorf("%s", strings.TrimSpace(said.String()))
	}
	return nil
}
