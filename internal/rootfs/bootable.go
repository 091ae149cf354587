package rootfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What machines get that engines leave empty or fill with the build's own. The resolver is the guest network's gateway.
const (
	mendedHostname = "vers\n"
	mendedHosts    = "127.0.0.1\tlocalhost\n127.0.1.1\tvers\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	mendedResolver = "nameserver 10.77.0.1\n"
)

// Mended are the files that Options.Bootable may replace.
var Mended = []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}

// mendTime is the time of what is made here, in seconds since 1970: the same every day, so that digests are. 1 January 2025.
const mendTime = 1735689600

// maxHosts is how much of /etc/hosts is looked at, in bytes.
const maxHosts = 64 << 10

// mountFolders are what the agent mounts on, and their modes.
var mountFolders = []struct {
	name string
	mode uint32
}{{"dev", 0o755}, {"proc", 0o555}, {"sys", 0o555}, {"run", 0o755}, {"tmp", 0o1777}}

// mend makes a root file system what a machine can boot from, as Options.Bootable says.
func (t *tree) mend() error {
	root, err := t.recordOf(t.root, ".")
	if err != nil {
		return err
	}
	root.mode = 0o755
	if err := t.removeMarks(); err != nil {
		return err
	}
	for _, folder := range mountFolders {
		if err := t.mendFolder(folder.name, folder.mode); err != nil {
			return t.failed("/"+folder.name, "make", err)
		}
	}
	files := [][2]string{{"etc/hostname", mendedHostname}, {"etc/resolv.conf", mendedResolver}}
	if !t.hostsUsable() {
		files = append(files, [2]string{"etc/hosts", mendedHosts})
	}
	for _, file := range files {
		if t.kept(file[0]) {
			continue
		}
		if err := t.mendFile(file[0], file[1]); err != nil {
			return t.failed("/"+file[0], "write", err)
		}
	}
	return nil
}

// removeMarks removes the files that say that this is a container.
func (t *tree) removeMarks() error {
	if err := t.remove(t.root, ".dockerenv"); err != nil && !errors.Is(err, unix.ENOENT) {
		return t.failed("/.dockerenv", "remove", err)
	}
	dir, err := unix.Openat(t.root, "run", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil // no folder of ours, no file in it
	case err != nil:
		return t.failed("/run", "open", err)
	}
	defer unix.Close(dir)
	if err := t.remove(dir, ".containerenv"); err != nil && !errors.Is(err, unix.ENOENT) {
		return t.failed("/run/.containerenv", "remove", err)
	}
	return nil
}

// kept reports whether the options keep a file from being mended.
func (t *tree) kept(name string) bool {
	return slices.ContainsFunc(t.keep, func(k string) bool { return strings.Trim(k, "/") == name })
}

func (t *tree) recordOf(dir int, base string) (*record, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	if r := t.records[st.Ino]; r != nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return r, nil
	}
	return nil, unix.ENOTDIR
}

// mendFolder makes sure that a folder of the root is one, and has its mode. A /tmp elsewhere is fine; an archive's /dev
// is emptied, since the guest has its own.
func (t *tree) mendFolder(name string, mode uint32) error {
	r, err := t.recordOf(t.root, name)
	if errors.Is(err, unix.ENOTDIR) && name == "tmp" {
		if fd, linkErr := t.openFolder(name); linkErr == nil {
			r, err = t.recordOf(fd, ".")
			unix.Close(fd)
		}
	}
	if errors.Is(err, unix.ENOTDIR) {
		if err := t.remove(t.root, name); err != nil {
			return err
		}
		err = unix.ENOENT
	}
	made := errors.Is(err, unix.ENOENT)
	if made {
		if err = t.makeFolder(t.root, name); err != nil {
			return err
		}
		if r, err = t.recordOf(t.root, name); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	r.mode = mode
	if made || name != "tmp" { // engines mount on the others, so that their times mean nothing
		r.seconds, r.nanoseconds = mendTime, 0
	}
	if name != "dev" {
		return nil
	}
	t.stale = true
	fd, err := unix.Openat(t.root, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return t.empty(fd)
}

// mendFile replaces a file, whatever it is or links to.
func (t *tree) mendFile(name, content string) error {
	dir, base, err := t.parent(name)
	if err != nil {
		return err
	}
	fd := -1
	err = t.create(dir, base, func() (err error) {
		fd, err = unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString(content)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	r := &record{kind: kindFile, mode: 0o644, seconds: mendTime, size: int64(len(content))}
	t.data.Reset()
	feed(t.data, []byte(content))
	t.data.Sum(r.sum[:0])
	return t.made(dir, base, r)
}

// hostsUsable reports whether the archive's /etc/hosts knows localhost. Engines empty it.
func (t *tree) hostsUsable() bool {
	fd, err := t.open("etc/hosts", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), "hosts")
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return false
	}
	content, err := io.ReadAll(io.LimitReader(f, maxHosts))
	return err == nil && bytes.Contains(content, []byte("localhost"))
}
