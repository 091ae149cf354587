package rootfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// Kinds of files in records and digests.
const (
	kindFile    = 'f'
	kindFolder  = 'd'
	kindSymlink = 'l'
	kindChar    = 'c'
	kindBlock   = 'b'
	kindFifo    = 'p'
)

// record is what an archive says of one file, whatever the file's names.
type record struct {
	kind           byte
	mode, uid, gid uint32
	seconds        int64
	nanoseconds    uint32
	major, minor   uint32
	size           int64
	sum            [32]byte          // of a file's content
	target         string            // of a symbolic link
	xattrs         map[string]string // nil: none
}

// PAX records of extended attributes: GNU tar and Go, GNU tar for SELinux, and GNU tar for ACLs, which are text.
const (
	paxXattr         = "SCHILY.xattr."
	paxSELinux       = "RHT.security.selinux"
	paxACL           = "SCHILY.acl.access"
	paxDefaultACL    = "SCHILY.acl.default"
	xattrSELinux     = "security.selinux"
	xattrACL         = "system.posix_acl_access"
	xattrDefaultACL  = "system.posix_acl_default"
	maxXattrNameSize = 255
)

// paxName undoes what GNU tar does to names of attributes, since a PAX record's own name ends at the first "=".
var paxName = strings.NewReplacer("%3D", "=", "%25", "%")

func newRecord(hdr *tar.Header, kind byte, w *warnings) (*record, error) {
	if hdr.Uid < 0 || hdr.Uid > maxID || hdr.Gid < 0 || hdr.Gid > maxID {
		return nil, fault.Invalidf("entry %s of the archive belongs to user %d and group %d, which do not exist", shortName(hdr.Name), hdr.Uid, hdr.Gid)
	}
	r := &record{
		kind: kind, mode: uint32(hdr.Mode & 0o7777), uid: uint32(hdr.Uid), gid: uint32(hdr.Gid),
		seconds: hdr.ModTime.Unix(), nanoseconds: uint32(hdr.ModTime.Nanosecond()),
	}
	for key, value := range hdr.PAXRecords {
		name, isXattr := strings.CutPrefix(key, paxXattr)
		switch {
		case isXattr:
			name = paxName.Replace(name)
		case key == paxSELinux:
			name = xattrSELinux
		case key == paxACL || key == paxDefaultACL:
			acl, err := binaryACL(value)
			if err != nil {
				w.add("the access control list of %s was left out: %v", hdr.Name, err)
				continue
			}
			name, value = map[string]string{paxACL: xattrACL, paxDefaultACL: xattrDefaultACL}[key], acl
		default:
			continue
		}
		if name == "" || len(name) > maxXattrNameSize {
			return nil, fault.Invalidf("entry %s of the archive has an extended attribute with a name of %d bytes", shortName(hdr.Name), len(name))
		}
		if r.xattrs == nil {
			r.xattrs = map[string]string{}
		}
		r.xattrs[name] = value
	}
	return r, nil
}

// apply gives a file owner, mode, extended attributes and times, in the order in which one does not undo another.
func (t *tree) apply(dir int, base string, r *record) error {
	if err := unix.Fchownat(dir, base, int(r.uid), int(r.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", r.uid, r.gid, err)
	}
	if r.kind != kindSymlink {
		if err := unix.Fchmodat(dir, base, r.mode, 0); err != nil {
			return fmt.Errorf("set mode %04o: %w", r.mode, err)
		}
	}
	if err := t.applyXattrs(dir, base, r); err != nil {
		return err
	}
	when := unix.Timespec{Sec: r.seconds, Nsec: int64(r.nanoseconds)}
	if err := unix.UtimesNanoAt(dir, base, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

func (t *tree) applyXattrs(dir int, base string, r *record) error {
	if len(r.xattrs) == 0 {
		return nil
	}
	// There is no call that takes a descriptor of a directory and a name.
	place := fmt.Sprintf("/proc/self/fd/%d/%s", dir, base)
	for _, name := range slices.Sorted(maps.Keys(r.xattrs)) {
		value := r.xattrs[name]
		err := unix.Lsetxattr(place, name, []byte(value), 0)
		switch {
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM):
			t.warnings.add("the extended attribute %s of %s was left out: %v", name, base, err)
		case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE):
			if t.outOfSpace() {
				return err
			}
			return fault.Invalidf("%q of the archive has more in its extended attributes than the file system can hold (%s has %d bytes): %w", base, name, len(value), err)
		case errors.Is(err, unix.EINVAL):
			return fault.Invalidf("the extended attribute %s of %q in the archive is malformed: %w", name, base, err)
		case err != nil:
			return fmt.Errorf("set the extended attribute %s: %w", name, err)
		}
	}
	return nil
}

func (t *tree) outOfSpace() bool {
	var st unix.Statfs_t
	return unix.Fstatfs(t.root, &st) == nil && st.Bfree == 0
}

// warnings collects what could not be kept, each kind of thing once with how often it happened.
type warnings struct {
	order  []string
	counts map[string]int
	first  map[string]string
}

// add records a loss. Losses with the same format are one line.
func (w *warnings) add(format string, args ...any) {
	if w.counts == nil {
		w.counts, w.first = map[string]int{}, map[string]string{}
	}
	if w.counts[format]++; w.counts[format] == 1 {
		w.order = append(w.order, format)
		w.first[format] = fmt.Sprintf(format, args...)
	}
}

func (w *warnings) lines() []string {
	var lines []string
	for _, format := range w.order {
		line := w.first[format]
		if more := w.counts[format] - 1; more > 0 {
			line += fmt.Sprintf(" (and %d more like this)", more)
		}
		lines = append(lines, line)
	}
	return lines
}
