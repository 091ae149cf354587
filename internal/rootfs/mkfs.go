package rootfs

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"vers/internal/fault"
	"vers/internal/program"
)

// kind says how one type of file system is made.
type kind struct {
	write    func(ctx context.Context, j *job) error
	tool     string // that MkfsArgs are for
	options  map[string]bool
	maxLabel int // bytes; 0: labels are ignored
}

func kindOf(t Type) (kind, bool) {
	k, ok := map[Type]kind{
		Ext4:     {writeExt4, "mke2fs", ext4Options, 16},
		Btrfs:    {writeBtrfs, "mkfs.btrfs", btrfsOptions, 255},
		XFS:      {writeXFS, "mkfs.xfs", xfsOptions, 12},
		Squashfs: {writeSquashfs, "sqfstar", squashfsOptions, 0},
		Erofs:    {writeErofs, "mkfs.erofs", erofsOptions, 0},
		VFAT:     {writeVFAT, "mkfs.vfat", vfatOptions, 11},
	}[t]
	return k, ok
}

// checkMkfsArgs refuses options that are not known to be harmless: known says whether a value follows.
func checkMkfsArgs(tool string, args []string, known map[string]bool) error {
	for i := 0; i < len(args); i++ {
		hasValue, ok := known[args[i]]
		if !ok {
			return fault.Invalidf("%q cannot be passed on to %s: give one option, or one value, in each argument, and none that names a file", args[i], tool)
		}
		if !hasValue {
			continue
		}
		if i++; i == len(args) {
			return fault.Invalidf("the option %s of %s lacks its value", args[i-1], tool)
		}
		if strings.HasPrefix(args[i], "-") || strings.Contains(args[i], "/") || namesFile(args[i]) {
			return fault.Invalidf("%s %s cannot be passed on to %s: it names a file, or is no value", args[i-1], args[i], tool)
		}
	}
	return nil
}

// namesFile finds suboptions that name files, as in "device=x" of mke2fs and "name=x" of mkfs.xfs.
func namesFile(value string) bool {
	for option := range strings.SplitSeq(value, ",") {
		key, _, _ := strings.Cut(option, "=")
		if key == "device" || key == "name" || key == "file" || strings.HasSuffix(key, "dev") {
			return true
		}
	}
	return false
}

// mkfs runs a program that makes file systems, or changes one.
func (j *job) mkfs(ctx context.Context, tool, debianPackage string, args ...string) error {
	cmd, err := j.command(ctx, tool, debianPackage, args...)
	if err != nil {
		return err
	}
	_, err = program.Run(ctx, cmd)
	return err
}

func (j *job) command(ctx context.Context, tool, debianPackage string, args ...string) (*exec.Cmd, error) {
	path, err := program.Find(tool, debianPackage)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	program.KillGroup(cmd)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C.UTF-8")
	return cmd, nil
}

// resize makes the image a hole of a size.
func (j *job) resize(size int64) error {
	if err := j.image.Truncate(0); err != nil {
		return err
	}
	if err := j.image.Truncate(size); err != nil {
		return fmt.Errorf("make a file of %d bytes: %w", size, err)
	}
	return nil
}

// fit makes a finished image as large as was asked for, which file systems that are made as large as their content mind
// as little as a partition that is too large.
func (j *job) fit() error {
	info, err := j.image.Stat()
	if err != nil {
		return err
	}
	wanted := j.options.SizeBytes
	if wanted == 0 {
		wanted = roundUp(info.Size(), blockSize)
	}
	if info.Size() > wanted {
		return fault.Exhaustedf("the %s image has %d bytes, and was to have %d at most: give it a larger size", j.options.Type, info.Size(), wanted)
	}
	return j.image.Truncate(wanted)
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
