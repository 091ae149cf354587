package buildfs

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// overlayEntry is one file, folder or link that an overlay puts into the file system.
type overlayEntry struct {
	header  tar.Header
	content func(w io.Writer) error // nil: none
}

// overlayEntries calls do for what an overlay holds, folders before what is in them.
func (p *Package) overlayEntries(ctx context.Context, o *Overlay, at time.Time, do func(overlayEntry) error) error {
	base := tar.Header{Uid: int(o.UID), Gid: int(o.GID), ModTime: at, Format: tar.FormatPAX}
	if o.SourceInline != nil {
		text := *o.SourceInline
		base.Name, base.Typeflag, base.Mode, base.Size = inside(o.Destination), tar.TypeReg, o.mode(0o644), int64(len(text))
		return do(overlayEntry{base, func(w io.Writer) error { _, err := io.WriteString(w, text); return err }})
	}
	source, _, err := p.stat(o.Source)
	if err != nil {
		return err
	}
	err = fs.WalkDir(p.root.FS(), source, func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		e, err := p.entry(name, name == source)
		if err != nil {
			return err
		}
		below := strings.TrimPrefix(strings.TrimPrefix(name, source), "/")
		if source == "." {
			below = strings.TrimPrefix(name, ".")
		}
		return p.overlayEntry(o, e, base, path.Join(inside(o.Destination), below), do)
	})
	if err != nil {
		return fmt.Errorf("read overlay %s: %w", o.Source, err)
	}
	return nil
}

func (p *Package) overlayEntry(o *Overlay, e packEntry, h tar.Header, name string, do func(overlayEntry) error) error {
	h.Name = name
	switch {
	case e.mode.IsDir():
		if name == "" {
			return nil // the root is there
		}
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
		if o.Mode.Set {
			h.Mode = o.Mode.Bits | o.Mode.Bits>>2&0o111 // who reads may enter
		}
		return do(overlayEntry{header: h})
	case e.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
		return do(overlayEntry{header: h})
	}
	info, err := p.root.Stat(e.name)
	if err != nil {
		return err
	}
	h.Typeflag, h.Mode, h.Size = tar.TypeReg, o.mode(int64(e.mode.Perm())), info.Size()
	return do(overlayEntry{h, func(w io.Writer) error {
		return p.copyFile(e.name, func(size int64) (io.Writer, error) {
			if size != h.Size {
				return nil, fmt.Errorf("%s changed while it was read", e.name)
			}
			return w, nil
		})
	}})
}

func (o *Overlay) mode(preset int64) int64 {
	if o.Mode.Set {
		return o.Mode.Bits
	}
	return preset
}

// write puts the entry into an archive.
func (e overlayEntry) write(w *tar.Writer) error {
	err := w.WriteHeader(&e.header)
	if err == nil && e.content != nil {
		err = e.content(w)
	}
	return err
}

// overlaysDigest stands for what mounted overlays hold, which the commands may read.
func (p *Package) overlaysDigest(ctx context.Context, overlays []Overlay) (string, error) {
	sum := sha256.New()
	w := tar.NewWriter(sum)
	for i := range overlays {
		if overlays[i].Mounted {
			err := p.overlayEntries(ctx, &overlays[i], packTime, func(e overlayEntry) error { return e.write(w) })
			if err != nil {
				return "", err
			}
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), w.Close()
}

// volumeDigest stands for the content of a volume of the package.
func (p *Package) volumeDigest(ctx context.Context, source string) (string, error) {
	name, err := Local(source)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	err = p.packTar(ctx, []string{name}, sum)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// hostPath is where a file of the package is on this machine.
func (p *Package) hostPath(reference string) (string, error) {
	name, _, err := p.stat(reference)
	if err != nil {
		return "", err
	}
	return absolute(path.Join(p.root.Name(), name))
}

func absolute(name string) (string, error) {
	if path.IsAbs(name) {
		return name, nil
	}
	dir, err := os.Getwd()
	return path.Join(dir, name), err
}
