package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
	"vers/internal/program"
)

// Options of sqfstar and mkfs.erofs that MkfsArgs may hold.
var (
	squashfsOptions = map[string]bool{
		"-comp": true, "-b": true, "-Xcompression-level": true, "-Xhc": false, "-Xbcj": true, "-Xdict-size": true, "-noI": false, "-noD": false, "-noF": false,
		"-noX": false, "-no-fragments": false, "-no-tailends": false, "-no-duplicates": false, "-no-xattrs": false, "-all-root": false, "-processors": true, "-mem": true,
	}
	erofsOptions = map[string]bool{"-z": true, "-C": true, "-E": true, "-T": true, "-x": true, "--all-root": false}
)

// writeSquashfs makes a squashfs file system. The archive is extracted and packed anew, so that what squashfs gets has no
// names twice and none that lead elsewhere.
func writeSquashfs(ctx context.Context, j *job) error {
	s, err := openStream(ctx, j.archive)
	if err != nil {
		return err
	}
	defer s.close()
	return j.stage(ctx, s, true, func(_ string, t *tree) error {
		args, newest, err := t.rootOptions(ctx)
		if err != nil {
			return err
		}
		args = append(append(args, "-force", "-no-progress", "-quiet"), j.options.MkfsArgs...)
		cmd, err := j.command(ctx, "sqfstar", "squashfs-tools", append(args, j.image.Name())...)
		if err != nil {
			return err
		}
		cmd.Env = append(cmd.Env, "SOURCE_DATE_EPOCH="+strconv.FormatInt(newest, 10))
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		packed := make(chan error, 1)
		go func() { packed <- errors.Join(t.pack(ctx, in), in.Close()) }()
		_, err = program.Run(ctx, cmd)
		in.Close() // it may have ended early
		packErr := <-packed
		if err == nil && !errors.Is(packErr, os.ErrClosed) && !errors.Is(packErr, unix.EPIPE) { // it need not read the padding
			err = packErr
		}
		if err != nil {
			return err
		}
		return j.fit()
	})
}

// rootOptions gives sqfstar's options for the root, whose entry it does not look at, and the newest time in the tree. The
// program gives the root the present time, or, so that the same tree gives the same bytes, the newest one it may use.
func (t *tree) rootOptions(ctx context.Context) (args []string, newest int64, err error) {
	root, err := t.recordOf(t.root, ".")
	if err != nil {
		return nil, 0, err
	}
	err = t.walk(ctx, func(v visited) error {
		newest = max(newest, squashfsTime(v.record))
		return nil
	})
	if len(root.xattrs) > 0 {
		t.warnings.add("the extended attributes of the root directory were left out")
	}
	if root.seconds != newest {
		t.warnings.add("the time of the root directory is the newest of the tree")
	}
	return []string{"-root-mode", fmt.Sprintf("%o", root.mode), "-root-uid", fmt.Sprint(root.uid), "-root-gid", fmt.Sprint(root.gid)}, newest, err
}

// squashfsTime is a file's time as squashfs can hold it: from 1970 to 2106.
func squashfsTime(r *record) int64 { return min(max(r.seconds, 0), 1<<32-1) }

// pack writes a staged tree as an archive that is sound.
func (t *tree) pack(ctx context.Context, w io.Writer) error {
	out := tar.NewWriter(w)
	if err := t.walk(ctx, func(v visited) error { return t.packEntry(out, v) }); err != nil {
		return err
	}
	return out.Close()
}

var tarTypes = map[byte]byte{
	kindFile: tar.TypeReg, kindFolder: tar.TypeDir, kindSymlink: tar.TypeSymlink, kindChar: tar.TypeChar, kindBlock: tar.TypeBlock, kindFifo: tar.TypeFifo,
}

func (t *tree) packEntry(out *tar.Writer, v visited) error {
	r := v.record
	if v.path == "" {
		return nil
	}
	hdr := &tar.Header{
		Name: "./" + v.path, Typeflag: tarTypes[r.kind], Mode: int64(r.mode), Uid: int(r.uid), Gid: int(r.gid), Size: r.size, Linkname: r.target,
		Devmajor: int64(r.major), Devminor: int64(r.minor), ModTime: t.wholeSecond(v), Format: tar.FormatPAX,
	}
	if r.kind == kindFolder {
		hdr.Name = strings.TrimSuffix(hdr.Name, "/") + "/"
	}
	if v.hard {
		hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, "./"+v.first, 0
		return out.WriteHeader(hdr)
	}
	for name, value := range r.xattrs {
		if prefix, _, _ := strings.Cut(name, "."); prefix != "user" && prefix != "trusted" && prefix != "security" {
			t.warnings.add("the extended attribute %s of %q was left out: squashfs knows user, trusted and security", name, v.path)
			continue
		}
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords[paxXattr+name] = value
	}
	if err := out.WriteHeader(hdr); err != nil {
		return fmt.Errorf("pack %s: %w", shortName(v.path), err)
	}
	if r.kind != kindFile {
		return nil
	}
	fd, err := unix.Openat(v.dir, v.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), v.base)
	defer f.Close()
	_, err = io.Copy(out, f)
	return err
}

func (t *tree) wholeSecond(v visited) time.Time {
	seconds := squashfsTime(v.record)
	if seconds != v.record.seconds {
		t.warnings.add("the time of %q was moved: squashfs knows those from 1970 to 2106", v.path)
	} else if v.record.nanoseconds != 0 {
		t.warnings.add("the time of %q was cut to a whole second", v.path)
	}
	return time.Unix(seconds, 0)
}

// writeErofs makes an EROFS file system of an extracted tree, whose files have to have their owners.
func writeErofs(ctx context.Context, j *job) error {
	if os.Geteuid() != 0 {
		return fault.Unavailablef("erofs images are made of trees whose files have their owners, which needs root: use squashfs or ext4, which do not")
	}
	s, err := openStream(ctx, j.archive)
	if err != nil {
		return err
	}
	defer s.close()
	return j.stage(ctx, s, false, func(dir string, _ *tree) error {
		uuid := j.options.UUID
		if uuid == "" {
			uuid = j.uuid()
		}
		args := []string{"--quiet", "--preserve-mtime", "-U" + uuid}
		for i := 0; i < len(j.options.MkfsArgs); i++ { // it takes values only together with their options
			arg := j.options.MkfsArgs[i]
			if erofsOptions[arg] {
				i++
				arg += j.options.MkfsArgs[i]
			}
			args = append(args, arg)
		}
		cmd, err := j.command(ctx, "mkfs.erofs", "erofs-utils", append(args, j.image.Name(), dir)...)
		if err != nil {
			return err
		}
		if _, err := program.Run(ctx, cmd); err != nil {
			return err
		}
		return errors.Join(j.fit(), j.looksLikeErofs())
	})
}

// looksLikeErofs asks for the magic number: some versions of mkfs.erofs give up with code 0.
func (j *job) looksLikeErofs() error {
	magic := make([]byte, 4)
	if _, err := j.image.ReadAt(magic, 1024); err != nil || !bytes.Equal(magic, []byte("\xe2\xe1\xf5\xe0")) {
		return fmt.Errorf("mkfs.erofs made no file system, and did not say why")
	}
	return nil
}
