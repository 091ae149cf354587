// Package rootfs makes file system images out of tar archives that nobody vouches for: names are resolved below the
// root whatever they say, and bytes and entries are counted against limits. Owners, modes, times, extended attributes,
// hard links, devices and holes are kept where the file system can hold them.
package rootfs

// Type is a kind of file system.
type Type string

// The file systems that can be made. VMs boot from Ext4.
const (
	Ext4     Type = "ext4"
	Btrfs    Type = "btrfs"
	XFS      Type = "xfs"
	Squashfs Type = "squashfs"
	Erofs    Type = "erofs"
	VFAT     Type = "vfat"
)

// Options of Write.
type Options struct {
	Type Type
	// SizeBytes is the size of the image. 0: as large as the content needs, and HeadroomBytes more.
	SizeBytes     int64
	HeadroomBytes int64
	Label, UUID   string   // "" derived from the content, so that equal trees have equal ones
	MkfsArgs      []string // passed on to the mkfs program
	// Bootable mends what engines leave behind and a machine needs: /etc/hostname, hosts and resolv.conf, /.dockerenv,
	// /dev, /proc, /sys, /run, /tmp, the mode of /.
	Bootable bool
	Limits   Limits
}

// Limits of what an archive may hold. Zero values are the package's defaults.
type Limits struct {
	Bytes   int64 // of all files' data, holes not counted
	Entries int64
}

// Result describes an image that was written.
type Result struct {
	SizeBytes int64
	UsedBytes int64 // allocated
	Entries   int64
	// Tree is the digest of names, modes, owners, times, extended attributes and contents: equal for equal trees,
	// whatever the order of the archive and whatever the file system.
	Tree     string
	Warnings []string // what this file system or a missing privilege could not keep
}
