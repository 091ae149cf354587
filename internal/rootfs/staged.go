package rootfs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vers/internal/ext4"
	"vers/internal/fault"
	"vers/internal/program"
)

// stage extracts the archive into a folder of the host, for programs that make file systems of folders, and lets use
// work with it. If bare, files have no settings, so that no privilege is needed: the tree's records say what they should
// be.
func (j *job) stage(ctx context.Context, s *stream, bare bool, use func(dir string, t *tree) error) (err error) {
	dir, err := os.MkdirTemp(j.dir, ".new-tree-*")
	if err != nil {
		return fmt.Errorf("make a folder for the tree: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	// One more level, which nobody else passes: the tree's own root may be open to all.
	top := filepath.Join(dir, "tree")
	if err := os.Mkdir(top, 0o700); err != nil {
		return err
	}
	root, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Join(err, os.Remove(top))
	}
	t := newTree(root, j.options, bare, &j.warnings)
	defer func() {
		t.forgetDir()
		err = errors.Join(err, t.empty(root), os.Remove(top)) // empty closes root; it copes with trees of any depth
	}()
	if err := t.fill(ctx, s); err != nil {
		return err
	}
	if j.tree, j.entries, err = t.finish(ctx); err != nil {
		return err
	}
	return use(top, t)
}

// fillExt4ByTree makes the file system of an extracted tree, which needs no privilege, and then sets in its inodes what
// only root could have given the tree's files. It is slow for directories of many thousand files.
func fillExt4ByTree(ctx context.Context, j *job, s *stream, inodes int64) error {
	return j.stage(ctx, s, true, func(dir string, t *tree) error {
		size, err := j.image.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		if err := errors.Join(j.image.Truncate(0), j.image.Truncate(size)); err != nil {
			return err
		}
		if err := mke2fs(ctx, j, inodes, dir); err != nil {
			if strings.Contains(err.Error(), "Could not allocate") {
				return fault.Exhaustedf("the tree does not fit into a file system of %d MiB: give it a larger size (%w)", size>>20, err)
			}
			return err
		}
		return setInodes(ctx, j, t)
	})
}

// setInodes has debugfs write the records of a staged tree into the inodes of the file system made of it.
func setInodes(ctx context.Context, j *job, t *tree) error {
	values, err := os.MkdirTemp(j.dir, ".new-values-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(values)
	script, err := os.Create(filepath.Join(values, "script"))
	if err != nil {
		return err
	}
	defer script.Close()
	e := &inodeEditor{w: bufio.NewWriter(script), values: values, names: map[string]map[string]uint32{}, files: map[string]string{}, warnings: t.warnings}
	if err := e.open(j.image); err != nil {
		return err
	}
	// First what frees and makes inodes: what is set afterwards stays.
	if err := t.walk(ctx, e.device); err != nil {
		return err
	}
	if err := t.walk(ctx, e.file); err != nil {
		return err
	}
	if err := e.w.Flush(); err != nil {
		return err
	}
	return debugfs(ctx, j, script.Name())
}

// debugfs runs a script on the image. The program tells of errors but ends with 0.
func debugfs(ctx context.Context, j *job, script string) error {
	cmd, err := j.command(ctx, "debugfs", "e2fsprogs", "-w", "-f", script, j.image.Name())
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.Discard, &said // it repeats every line of the script
	if _, err := program.Run(ctx, cmd); err != nil {
		return err
	}
	_, problems, _ := strings.Cut(said.String(), "\n") // the first line is its version
	if problems = strings.TrimSpace(problems); problems != "" {
		return fmt.Errorf("debugfs: %s", problems[:min(len(problems), 500)])
	}
	return nil
}

// inodeEditor writes a script for debugfs.
type inodeEditor struct {
	w        *bufio.Writer
	fs       *ext4.FS
	names    map[string]map[string]uint32 // inodes of each directory, by its path
	values   string                       // folder for values of extended attributes
	files    map[string]string            // their files, by value
	warnings *warnings
}

func (e *inodeEditor) open(image *os.File) error {
	info, err := image.Stat()
	if err != nil {
		return err
	}
	if e.fs, err = ext4.Open(image, info.Size()); err != nil {
		return err
	}
	e.names[""], err = e.fs.Numbers(ext4.RootInode)
	return err
}

// number finds the inode of a visited name. Directories come before what is in them.
func (e *inodeEditor) number(v visited) (uint32, error) {
	if v.path == "" {
		return ext4.RootInode, nil
	}
	above, base := path.Split(v.path)
	n, ok := e.names[strings.TrimSuffix(above, "/")][base]
	if !ok {
		return 0, fmt.Errorf("mke2fs left out /%s", v.path)
	}
	if v.record.kind == kindFolder && e.names[v.path] == nil {
		var err error
		if e.names[v.path], err = e.fs.Numbers(n); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// device replaces the empty file that stands for a device.
func (e *inodeEditor) device(v visited) error {
	if _, err := e.number(v); err != nil {
		return err
	}
	r := v.record
	if r.kind != kindChar && r.kind != kindBlock {
		return nil
	}
	if !scriptable(v.base) {
		e.warnings.add("the device %q is an empty file: without a mount, devices need simple names", v.path)
		return nil
	}
	if v.hard {
		e.warnings.add("%q is one of its own, not a hard link of %q: without a mount, only files can be linked", v.path, v.first)
	}
	above, _ := path.Split(v.path)
	dir := uint32(ext4.RootInode)
	if above = strings.TrimSuffix(above, "/"); above != "" {
		n, err := e.number(visited{path: above, record: r})
		if err != nil {
			return err
		}
		dir = n
	}
	small, large := r.major<<8|r.minor, uint32(0)
	if r.major > 255 || r.minor > 255 {
		small, large = 0, r.minor&0xff|r.major<<8|r.minor&^0xff<<12
	}
	name := fmt.Sprintf("%q", v.base)
	fmt.Fprintf(e.w, "cd <%d>\nrm %s\nmknod %s %c 1 1\nsif %s block[0] %d\nsif %s block[1] %d\n", dir, name, name, r.kind, name, small, name, large)
	return e.settings(name, r)
}

// scriptable reports whether debugfs takes a name as it is.
func scriptable(name string) bool {
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte("\"\\<>", c) >= 0 {
			return false
		}
	}
	return true
}

// file sets what an inode has of owner, mode, times and extended attributes.
func (e *inodeEditor) file(v visited) error {
	switch kind := v.record.kind; {
	case kind == kindChar, kind == kindBlock, kind == kindFile && v.hard:
		return nil
	case v.hard: // mke2fs knows hard links of files only
		e.warnings.add("%q is one of its own, not a hard link of %q: without a mount, only files can be linked", v.path, v.first)
	}
	n, err := e.number(v)
	if err != nil {
		return err
	}
	return e.settings(fmt.Sprintf("<%d>", n), v.record)
}

var typeBits = map[byte]uint32{
	kindFile: unix.S_IFREG, kindFolder: unix.S_IFDIR, kindSymlink: unix.S_IFLNK, kindChar: unix.S_IFCHR, kindBlock: unix.S_IFBLK, kindFifo: unix.S_IFIFO,
}

func (e *inodeEditor) settings(inode string, r *record) error {
	for _, name := range slices.Sorted(maps.Keys(r.xattrs)) {
		if !scriptable(name) {
			e.warnings.add("the extended attribute %q was left out: without root, they need simple names", name)
			continue
		}
		file, err := e.value(r.xattrs[name])
		if err != nil {
			return err
		}
		fmt.Fprintf(e.w, "ea_set -f %s %s %s\n", file, inode, name)
	}
	extra := r.nanoseconds<<2 | uint32((r.seconds-int64(int32(r.seconds)))>>32)&3
	fmt.Fprintf(e.w, "sif %s mode 0%o\nsif %s uid %d\nsif %s gid %d\n", inode, typeBits[r.kind]|r.mode, inode, r.uid, inode, r.gid)
	for _, field := range []string{"atime", "mtime"} {
		fmt.Fprintf(e.w, "sif %s %s @%d\nsif %s %s_extra %d\n", inode, field, uint32(r.seconds), inode, field, extra)
	}
	return nil
}

// value keeps a value in a file of its own.
func (e *inodeEditor) value(value string) (string, error) {
	if file, ok := e.files[value]; ok {
		return file, nil
	}
	file := filepath.Join(e.values, fmt.Sprint(len(e.files)))
	e.files[value] = file
	return file, os.WriteFile(file, []byte(value), 0o600)
}
