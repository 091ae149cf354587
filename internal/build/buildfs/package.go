package buildfs

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"vers/internal/fault"
)

// ScriptName is the build script's name in a package.
const ScriptName = "build.toml"

// Limits of a package that is unpacked. It holds scripts and configuration, not disks.
const (
	maxScriptBytes    = 1 << 20
	maxPackageBytes   = 16 << 30
	maxPackageEntries = 1_000_000
)

// Kind is a kind of package.
type Kind string

// The kinds, in the words of `pack --type`.
const (
	KindScript    Kind = "build-script"
	KindDirectory Kind = "directory"
	KindTar       Kind = "tar"
	KindTarGz     Kind = "tar-gz"
)

// Package is an open package. Close it.
type Package struct {
	Path string // as it was named
	Kind Kind
	text []byte   // of the script
	file string   // the script's name in messages
	root *os.Root // nil: a script alone
	temp string   // folder to remove
}

// Open finds out by its content what path is, and opens it. Archives are unpacked into a temporary folder, which Close
// removes.
func Open(ctx context.Context, path string) (*Package, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.NotFoundf("package %s does not exist", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the package: %w", err)
	}
	p := &Package{Path: path}
	switch {
	case info.IsDir():
		p.Kind = KindDirectory
		err = p.openFolder(path)
	case info.Mode().IsRegular():
		err = p.openFile(ctx)
	default:
		err = fault.Invalidf("package %s is neither a file nor a folder", path)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close forgets the package and removes what it unpacked.
func (p *Package) Close() error {
	var err error
	if p.root != nil {
		err = p.root.Close()
	}
	if p.temp != "" {
		err = errors.Join(err, os.RemoveAll(p.temp))
	}
	return err
}

// openFolder uses dir as the package's root.
func (p *Package) openFolder(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the package: %w", err)
	}
	p.root = root
	p.file = filepath.Join(p.Path, ScriptName)
	file, err := root.Open(ScriptName)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.NotFoundf("package %s has no %s at its top", p.Path, ScriptName)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", p.file, err)
	}
	defer file.Close()
	p.text, err = readScript(file, p.file)
	return err
}

func readScript(r io.Reader, name string) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxScriptBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxScriptBytes {
		return nil, fault.Invalidf("%s is larger than %d KiB: that is no build script", name, maxScriptBytes>>10)
	}
	return text, nil
}

func (p *Package) openFile(ctx context.Context) error {
	file, err := os.Open(p.Path)
	if err != nil {
		return fmt.Errorf("open the package: %w", err)
	}
	defer file.Close()
	if p.Kind, err = detect(file); err != nil {
		return fmt.Errorf("read package %s: %w", p.Path, err)
	}
	if p.Kind == KindScript {
		p.file = p.Path
		p.text, err = readScript(file, p.Path)
		return err
	}
	if p.temp, err = os.MkdirTemp("", "vers-package."); err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	if err := unpack(ctx, file, p.Kind, p.temp); err != nil {
		return fault.New(fault.KindOf(err), "unpack %s: %w", p.Path, err)
	}
	return p.openFolder(packageRoot(p.temp))
}

// packageRoot is dir, or the only folder in it when the script is there: what `tar cf x.tar folder` makes.
func packageRoot(dir string) string {
	if _, err := os.Lstat(filepath.Join(dir, ScriptName)); err == nil {
		return dir
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || !entries[0].IsDir() {
		return dir
	}
	inner := filepath.Join(dir, entries[0].Name())
	if _, err := os.Lstat(filepath.Join(inner, ScriptName)); err == nil {
		return inner
	}
	return dir
}

// detect tells archives from scripts by their first block, and leaves the file at its start.
func detect(file io.ReadSeeker) (Kind, error) {
	kind := KindScript
	block, err := firstBlock(file)
	switch {
	case err != nil:
		return "", err
	case bytes.HasPrefix(block, []byte{0x1f, 0x8b}):
		kind = KindTarGz
	case isTar(block):
		kind = KindTar
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	if kind != KindTarGz {
		return kind, nil
	}
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return "", fault.Invalidf("damaged gzip data: %w", err)
	}
	if block, err = firstBlock(unzipped); err != nil {
		return "", fault.Invalidf("damaged gzip data: %w", err)
	}
	if !isTar(block) {
		return "", fault.Invalidf("it is gzip data, but not of a tar archive")
	}
	_, err = file.Seek(0, io.SeekStart)
	return kind, err
}

func firstBlock(r io.Reader) ([]byte, error) {
	block := make([]byte, 512)
	n, err := io.ReadFull(r, block)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return block[:n], err
}

// isTar knows the magic of POSIX and GNU, an empty archive, and the checksum of the old form.
func isTar(block []byte) bool {
	if len(block) < 512 {
		return false
	}
	if bytes.HasPrefix(block[257:], []byte("ustar")) || len(bytes.Trim(block, "\x00")) == 0 {
		return true
	}
	sum := int64(0)
	for i, c := range block {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int64(c)
	}
	var stored int64
	_, err := fmt.Sscanf(strings.Trim(string(block[148:156]), " \x00"), "%o", &stored)
	return err == nil && stored == sum
}

// Local resolves a reference of the script from the package's root, in both spellings: "/scripts/a.sh" and
// "scripts/a.sh" are the same file. It never leads out of the package.
func Local(reference string) (string, error) {
	if strings.ContainsRune(reference, 0) {
		return "", fault.Invalidf("holds a zero byte")
	}
	if climbs(reference) {
		return "", fault.Invalidf("%q leads out of the package", reference)
	}
	return path.Clean(strings.TrimLeft(reference, "/")), nil
}

// stat resolves a reference and looks at what it names, through symbolic links within the package.
func (p *Package) stat(reference string) (name string, info fs.FileInfo, err error) {
	if name, err = Local(reference); err != nil {
		return "", nil, err
	}
	if p.root == nil {
		return "", nil, fault.Invalidf("%q is a file of a package, but this is a build script alone: put both in a folder, the script as %s, and name the folder", reference, ScriptName)
	}
	info, err = p.root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, fault.NotFoundf("%q is not in the package", reference)
	case err != nil && strings.Contains(err.Error(), "path escapes"):
		return "", nil, fault.Invalidf("%q leads out of the package by a symbolic link", reference)
	case err != nil:
		return "", nil, fmt.Errorf("look at %q: %w", reference, err)
	}
	return name, info, nil
}
