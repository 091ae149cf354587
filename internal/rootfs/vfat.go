package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
	"vers/internal/program"
)

var vfatOptions = map[string]bool{
	"-F": true, "-s": true, "-S": true, "-r": true, "-R": true, "-f": true, "-M": true, "-h": true, "-a": false, "-v": false,
}

const (
	vfatSmallest = 1 << 20
	vfatLargest  = 1<<32 - 1 // of a file, in bytes
	// mcopyNames is how many names one call of mcopy gets.
	mcopyNames = 500
)

// writeVFAT makes a FAT file system of the archive's files and folders, with mtools: nothing is mounted.
func writeVFAT(ctx context.Context, j *job) error {
	if !j.options.Lossy {
		return fault.Invalidf("vfat keeps no owners, modes, links or devices, so nothing boots from it: ask for ext4, or for what is lost (Lossy)")
	}
	need, s, err := j.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	return j.stage(ctx, s, true, func(dir string, t *tree) error {
		if err := t.reduceToVFAT(ctx); err != nil {
			return err
		}
		size := j.options.SizeBytes
		if size == 0 { // clusters can be 32 KiB large
			size = roundUp((need.blocks*blockSize+j.options.HeadroomBytes)*11/10+need.inodes*(16<<10)+4<<20, 1<<20)
		}
		if size < vfatSmallest {
			return fault.Invalidf("%d bytes are too few for vfat: at least %d MiB", size, vfatSmallest>>20)
		}
		if err := j.resize(size); err != nil {
			return err
		}
		args := []string{"-n", strings.ToUpper(j.options.Label), "-i", j.tree[:8], "--invariant"}
		if err := j.mkfs(ctx, "mkfs.vfat", "dosfstools", append(append(args, j.options.MkfsArgs...), j.image.Name())...); err != nil {
			return err
		}
		return j.mcopy(ctx, dir)
	})
}

// mcopy copies a folder's content into the image. The folder holds files and folders only: mcopy follows links.
func (j *job) mcopy(ctx context.Context, dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(mcopyNames)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		args := []string{"-s", "-m", "-Q", "-i", j.image.Name()}
		for _, name := range names {
			args = append(args, "./"+name)
		}
		cmd, err := j.command(ctx, "mcopy", "mtools", append(args, "::/")...)
		if err != nil {
			return err
		}
		cmd.Dir = dir
		cmd.Env = append(cmd.Env, "MTOOLS_SKIP_CHECK=1", "MTOOLSRC=/dev/null", "TZ=UTC")
		if _, err := program.Run(ctx, cmd); err != nil {
			if strings.Contains(err.Error(), "full") {
				return fault.Exhaustedf("the tree does not fit into the vfat image: give it a larger size (%w)", err)
			}
			return err
		}
	}
}

// reduceToVFAT takes out of a staged tree what FAT cannot hold, and refuses names that it cannot: files must not
// disappear.
func (t *tree) reduceToVFAT(ctx context.Context) error {
	folded := map[string]string{}
	return t.walk(ctx, func(v visited) error {
		switch v.record.kind {
		case kindFolder, kindFile:
		default:
			t.warnings.add("%q was left out: vfat has no links, devices or pipes", v.path)
			return unix.Unlinkat(v.dir, v.base, 0)
		}
		r := v.record
		if v.hard {
			t.warnings.add("%q is a copy of %q: vfat has no hard links", v.path, v.first)
		}
		if r.uid != 0 || r.gid != 0 || r.mode&0o7000 != 0 || len(r.xattrs) > 0 {
			t.warnings.add("owner, set-id bits or extended attributes of %q were lost: vfat has none", v.path)
		}
		if r.size > vfatLargest {
			return fault.Invalidf("%q has %d bytes: a file in vfat has less than 4 GiB", v.path, r.size)
		}
		if v.path == "" {
			t.warnings.add("owners, modes and parts of seconds were lost: vfat has none")
			return unix.Fchmod(v.dir, 0o700)
		}
		if why := vfatRefuses(v.base); why != "" {
			return fault.Invalidf("%q cannot be a name in vfat: %s", v.path, why)
		}
		key := strings.ToLower(v.path)
		if other, ok := folded[key]; ok {
			return fault.Invalidf("%q and %q are the same name in vfat", other, v.path)
		}
		folded[key] = v.path
		when := unix.Timespec{Sec: min(max(r.seconds, 315532800), 4354819198)} // 1980 to 2107
		if when.Sec != r.seconds {
			t.warnings.add("the time of %q was moved: vfat knows those from 1980 to 2107", v.path)
		}
		return unix.UtimesNanoAt(v.dir, v.base, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// vfatRefuses says why a name cannot be one of FAT's long names, or "".
func vfatRefuses(base string) string {
	switch {
	case !utf8.ValidString(base):
		return "it is not UTF-8"
	case strings.ContainsAny(base, "\"*:<>?\\|") || strings.IndexFunc(base, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0:
		return "it has one of \" * : < > ? \\ | or a control character"
	case strings.HasSuffix(base, ".") || strings.HasSuffix(base, " "):
		return "it ends with a dot or a blank"
	case reservedNames[strings.ToUpper(strings.TrimSuffix(base, path.Ext(base)))]:
		return fmt.Sprintf("%s is a device there", base)
	}
	return ""
}

var reservedNames = map[string]bool{"CON": true, "PRN": true, "AUX": true, "NUL": true}
