package buildfs

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vers/internal/fault"
)

// packTime is the time of everything in a package, so that packing twice gives the same bytes.
var packTime = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// KindOfDestination guesses the kind of package that a path is meant to be.
func KindOfDestination(dest string) Kind {
	switch lower := strings.ToLower(dest); {
	case strings.HasSuffix(lower, ".tar.gz"), strings.HasSuffix(lower, ".tgz"):
		return KindTarGz
	case strings.HasSuffix(lower, ".tar"):
		return KindTar
	case strings.HasSuffix(lower, ".toml"):
		return KindScript
	}
	return KindDirectory
}

// Packed says what Pack has written.
type Packed struct {
	Path     string    `json:"path"`
	Kind     Kind      `json:"kind"`
	Files    []string  `json:"files"` // besides the script
	Warnings []Problem `json:"warnings"`
}

// Pack writes a package of a script and everything that it refers to, whole folders included, under the same names.
// References are taken from the script's folder and never lead out of it. What is at dest already stays, unless replace
// is set; a folder must be empty in any case.
func Pack(ctx context.Context, scriptPath, dest string, kind Kind, replace bool, o CheckOptions) (Packed, error) {
	p, err := openForPacking(ctx, scriptPath)
	if err != nil {
		return Packed{}, err
	}
	defer p.Close()
	script, report, err := p.Check(o)
	if err == nil {
		err = report.Err()
	}
	if err != nil {
		return Packed{}, err
	}
	names, err := p.references(script, o)
	if err == nil {
		err = p.apart(names, dest)
	}
	if err != nil {
		return Packed{}, err
	}
	switch kind {
	case KindScript:
		if len(names) > 0 {
			return Packed{}, fault.Invalidf("%s refers to %s; a package of type %s holds the script alone, take %s, %s or %s",
				scriptPath, strings.Join(names, ", "), KindScript, KindDirectory, KindTar, KindTarGz)
		}
		err = writeWhole(dest, replace, func(w io.Writer) error { _, err := w.Write(p.text); return err })
	case KindDirectory:
		err = p.packFolder(ctx, names, dest)
	case KindTar:
		err = writeWhole(dest, replace, func(w io.Writer) error { return p.packTar(ctx, names, w) })
	case KindTarGz:
		err = writeWhole(dest, replace, func(w io.Writer) error {
			zip := gzip.NewWriter(w)
			return errors.Join(p.packTar(ctx, names, zip), zip.Close())
		})
	default:
		err = fault.Invalidf("unknown type of package %q: %s, %s, %s or %s", kind, KindTarGz, KindTar, KindDirectory, KindScript)
	}
	return Packed{dest, kind, append([]string{}, names...), report.Warnings}, err
}

// openForPacking opens a package of any kind; a script's folder is what its references are in.
func openForPacking(ctx context.Context, scriptPath string) (*Package, error) {
	p, err := Open(ctx, scriptPath)
	if err != nil || p.Kind != KindScript {
		return p, err
	}
	p.root, err = os.OpenRoot(filepath.Dir(scriptPath))
	if err != nil {
		return nil, fmt.Errorf("open the script's folder: %w", err)
	}
	return p, nil
}

// apart refuses a destination within what is packed.
func (p *Package) apart(names []string, dest string) error {
	if p.root == nil {
		return nil
	}
	folder, err := filepath.Abs(p.root.Name())
	if err != nil {
		return err
	}
	whole, err := filepath.Abs(dest)
	if err != nil {
		return err
	}
	inner, err := filepath.Rel(folder, whole)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !climbs(inner) && (name == "." || inner == name || strings.HasPrefix(inner, name+"/")) {
			return fault.Invalidf("destination %s is within %s, which is packed; take one outside of it", dest, filepath.Join(p.root.Name(), name))
		}
	}
	return nil
}

// references are the files and folders of the package that the script names, each once, none within another.
func (p *Package) references(s *Script, o CheckOptions) ([]string, error) {
	var all []string
	for _, c := range s.Commands {
		all = append(all, c.ScriptPath)
	}
	for _, overlay := range s.Overlays {
		all = append(all, overlay.Source)
	}
	if !o.HostVolumes {
		for source := range s.Container.Volumes {
			all = append(all, source)
		}
	}
	var names []string
	for _, reference := range all {
		if reference == "" {
			continue
		}
		name, err := Local(reference)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		return slices.ContainsFunc(names, func(other string) bool {
			return name != other && (other == "." || strings.HasPrefix(name, other+"/"))
		})
	}), nil
}

// packEntry is a file, folder or link of a package.
type packEntry struct {
	name string
	mode fs.FileMode
	link string // target of a symbolic link
}

// walk calls do for everything below the names, and for the folders above them, parents first, in order of name. Only
// the names themselves are followed when they are symbolic links.
func (p *Package) walk(ctx context.Context, names []string, do func(packEntry) error) error {
	seen := map[string]bool{".": true}
	for _, name := range names {
		for _, parent := range parents(name) {
			if !seen[parent] {
				seen[parent] = true
				if err := do(packEntry{parent, fs.ModeDir | 0o755, ""}); err != nil {
					return err
				}
			}
		}
		err := fs.WalkDir(p.root.FS(), name, func(name string, _ fs.DirEntry, err error) error {
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			if seen[name] {
				return nil
			}
			seen[name] = true
			entry, err := p.entry(name, slices.Contains(names, name))
			if err != nil {
				return err
			}
			return do(entry)
		})
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return nil
}

func (p *Package) entry(name string, follow bool) (packEntry, error) {
	look := p.root.Lstat
	if follow {
		look = p.root.Stat
	}
	info, err := look(name)
	if err != nil {
		return packEntry{}, err
	}
	entry := packEntry{name: name, mode: plainMode(info.Mode())}
	switch info.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		entry.link, err = p.root.Readlink(name)
	default:
		err = fault.Invalidf("%s is a device, pipe or socket, which has no place in a package", name)
	}
	return entry, err
}

// plainMode is what a package keeps of permissions: whether a file can be executed. Checkouts of one repository differ
// in the rest.
func plainMode(mode fs.FileMode) fs.FileMode {
	switch {
	case mode.IsDir():
		return fs.ModeDir | 0o755
	case mode&fs.ModeSymlink != 0:
		return fs.ModeSymlink | 0o777
	case mode&0o111 != 0:
		return 0o755
	}
	return 0o644
}

func parents(name string) []string {
	var all []string
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		all = append(all, dir)
	}
	slices.Reverse(all)
	return all
}

func (p *Package) packTar(ctx context.Context, names []string, w io.Writer) error {
	archive := tar.NewWriter(w)
	err := archive.WriteHeader(&tar.Header{Name: ScriptName, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(p.text)), ModTime: packTime, Format: tar.FormatPAX})
	if err == nil {
		_, err = archive.Write(p.text)
	}
	if err == nil {
		err = p.walk(ctx, names, func(e packEntry) error {
			if e.name == ScriptName {
				return nil
			}
			return p.packTarEntry(archive, e)
		})
	}
	return errors.Join(err, archive.Close())
}

func (p *Package) packTarEntry(archive *tar.Writer, e packEntry) error {
	h := &tar.Header{Name: e.name, Mode: int64(e.mode.Perm()), ModTime: packTime, Format: tar.FormatPAX}
	switch {
	case e.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, e.name+"/"
	case e.link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
	default:
		return p.copyFile(e.name, func(size int64) (io.Writer, error) {
			h.Typeflag, h.Size = tar.TypeReg, size
			return archive, archive.WriteHeader(h)
		})
	}
	return archive.WriteHeader(h)
}

// copyFile opens a file of the package and copies it to what open gives for its size.
func (p *Package) copyFile(name string, open func(size int64) (io.Writer, error)) error {
	file, err := p.root.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	w, err := open(info.Size())
	if err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(file, info.Size()))
	if err == nil && n < info.Size() {
		err = fault.Conflictf("%s has become shorter while it was read", name)
	}
	return err
}

func (p *Package) packFolder(ctx context.Context, names []string, dest string) (err error) {
	made, err := emptyFolder(dest)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			empty(dest, made)
		}
	}()
	root, err := os.OpenRoot(dest)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.WriteFile(ScriptName, p.text, 0o644); err != nil {
		return fmt.Errorf("write the package: %w", err)
	}
	return p.walk(ctx, names, func(e packEntry) error {
		switch {
		case e.name == ScriptName || e.name == ".":
			return nil
		case e.mode.IsDir():
			return root.Mkdir(e.name, 0o755)
		case e.link != "":
			return root.Symlink(e.link, e.name)
		}
		file, err := root.OpenFile(e.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, e.mode)
		if err != nil {
			return err
		}
		err = p.copyFile(e.name, func(int64) (io.Writer, error) { return file, nil })
		return errors.Join(err, file.Chmod(e.mode), file.Close())
	})
}

// writeWhole writes a file beside dest and moves it there when it is whole.
func writeWhole(dest string, replace bool, write func(io.Writer) error) error {
	if _, err := os.Lstat(dest); err == nil && !replace {
		return fault.Conflictf("%s exists already; remove it, name another destination, or say --force", dest)
	}
	file, err := os.CreateTemp(filepath.Dir(dest), "."+filepath.Base(dest)+".")
	if err != nil {
		return fmt.Errorf("write the package: %w", err)
	}
	defer os.Remove(file.Name())
	err = errors.Join(write(file), file.Chmod(0o644), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), dest)
	}
	return err
}
