package rootfs

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Tags of access control lists as the kernel has them (linux/posix_acl_xattr.h).
const (
	aclVersion   = 2
	aclUserObj   = 0x01
	aclUser      = 0x02
	aclGroupObj  = 0x04
	aclGroup     = 0x08
	aclMask      = 0x10
	aclOther     = 0x20
	aclUndefined = 1<<32 - 1 // the id of entries that are for nobody in particular
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// binaryACL turns the text of GNU tar's ACL records ("user::rw-,user:1000:r--,…", also with the number at the end, as
// star writes it) into what the kernel takes as an extended attribute.
func binaryACL(text string) (string, error) {
	var entries []aclEntry
	for _, line := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		e, err := parseACLEntry(line)
		if err != nil {
			return "", err
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b aclEntry) int { return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id)) })
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b), nil
}

func parseACLEntry(line string) (aclEntry, error) {
	parts := strings.Split(line, ":")
	if len(parts) < 3 {
		return aclEntry{}, fmt.Errorf("%q is no entry of a list", line)
	}
	e := aclEntry{id: aclUndefined}
	switch tag, named := parts[0], parts[1] != ""; {
	case (tag == "user" || tag == "u") && named:
		e.tag = aclUser
	case tag == "user" || tag == "u":
		e.tag = aclUserObj
	case (tag == "group" || tag == "g") && named:
		e.tag = aclGroup
	case tag == "group" || tag == "g":
		e.tag = aclGroupObj
	case tag == "mask" || tag == "m":
		e.tag = aclMask
	case tag == "other" || tag == "o":
		e.tag = aclOther
	default:
		return aclEntry{}, fmt.Errorf("%q begins with an unknown tag", line)
	}
	if e.tag == aclUser || e.tag == aclGroup {
		id, err := strconv.ParseUint(parts[len(parts)-1], 10, 32) // star's number at the end
		if err != nil || len(parts) < 4 {
			id, err = strconv.ParseUint(parts[1], 10, 32)
		}
		if err != nil {
			return aclEntry{}, fmt.Errorf("%q names a user or group without its number: make the archive with numeric owners", line)
		}
		e.id = uint32(id)
	}
	for _, letter := range parts[2] {
		switch letter {
		case 'r':
			e.perm |= 4
		case 'w':
			e.perm |= 2
		case 'x':
			e.perm |= 1
		case '-':
		default:
			return aclEntry{}, fmt.Errorf("%q has an unknown permission", line)
		}
	}
	return e, nil
}
