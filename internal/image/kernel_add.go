package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"vers/internal/fault"
	"vers/internal/program"
)

// KernelSource says where a kernel comes from.
type KernelSource struct {
	From    string // a kernel image (vmlinuz), a Debian package (.deb), or the name of one in the host's package sources
	Modules string // of a kernel image: the folder with its modules; "": /lib/modules/<release>
	BuiltIn bool   // of a kernel image: it needs no modules
}

var (
	kernelName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]+$`) // Debian policy 5.6.7
)

// AddKernel makes the kernel <dataDir>/kernels/<name>, for VMs that ask for it by name. A name that is taken is
// fault.Conflict. Progress lines go to progress, which may be nil.
func AddKernel(ctx context.Context, dataDir, name string, source KernelSource, progress io.Writer) (Kernel, error) {
	if !kernelName.MatchString(name) {
		return Kernel{}, fault.Invalidf("kernel name %.80q is not valid: use 1 to 64 letters, digits, '-', '_' or '.', beginning with a letter or digit", name)
	}
	if name == DefaultKernel {
		return Kernel{}, fault.Invalidf("the kernel %s is made by versd itself: choose another name", name)
	}
	kernels := filepath.Join(dataDir, "kernels")
	err := withLock(ctx, kernels, func() error {
		if _, err := OpenKernel(dataDir, name); err == nil {
			return fault.Conflictf("kernel '%s' exists: choose another name, or remove it first (versd kernel remove %s)", name, name)
		}
		sweep(kernels)
		return addKernel(ctx, kernels, name, source, progress)
	})
	if err != nil {
		return Kernel{}, err
	}
	return OpenKernel(dataDir, name)
}

func addKernel(ctx context.Context, kernels, name string, source KernelSource, progress io.Writer) error {
	work, err := newApt(progress)
	if err != nil {
		return err
	}
	defer os.RemoveAll(work.dir)
	files, err := findKernel(ctx, work, source)
	if err != nil {
		return err
	}
	if err := checkKernel(files.vmlinuz); err != nil {
		return err
	}
	err = publishKernel(ctx, kernels, name, files, progress)
	if fault.Is(err, fault.NotFound) {
		return fault.Invalidf("guests cannot run on kernel %s: %w", files.release, err)
	}
	return err
}

// findKernel gets hold of a kernel's files.
func findKernel(ctx context.Context, work *apt, source KernelSource) (kernelFiles, error) {
	info, err := os.Stat(source.From)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return kernelFiles{}, fault.Invalidf("%s is no file: name a kernel image, a .deb file or a package", source.From)
	case err == nil && isDebianPackage(source.From):
		return kernelOfPackage(ctx, work, source, source.From)
	case err == nil:
		return kernelOfImage(source)
	case strings.ContainsRune(source.From, '/') || strings.HasSuffix(source.From, ".deb") || !packageName.MatchString(source.From):
		return kernelFiles{}, fault.NotFoundf("there is no file %s, and it is no name of a Debian package", source.From)
	}
	deb, err := work.download(ctx, source.From)
	if err != nil {
		return kernelFiles{}, err
	}
	return kernelOfPackage(ctx, work, source, deb)
}

// isDebianPackage looks at how a file begins: a package is an ar archive.
func isDebianPackage(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, 8)
	_, err = io.ReadFull(f, magic)
	return err == nil && string(magic) == "!<arch>\n"
}

// kernelOfPackage unpacks a package, or the one that it stands for if it is a meta package.
func kernelOfPackage(ctx context.Context, work *apt, source KernelSource, deb string) (kernelFiles, error) {
	if source.Modules != "" || source.BuiltIn {
		return kernelFiles{}, fault.Invalidf("a package brings its modules: leave --modules and --built-in out")
	}
	say(work.progress, "unpacking %s", filepath.Base(deb))
	files, err := unpackKernel(ctx, deb, filepath.Join(work.dir, "tree"))
	if !fault.Is(err, fault.NotFound) {
		return files, err
	}
	record, fieldErr := program.Run(ctx, exec.CommandContext(ctx, "dpkg-deb", "-f", deb, "Depends"))
	if fieldErr != nil {
		return kernelFiles{}, fieldErr
	}
	meant := parseDependency(append([]byte("Depends: "), bytes.ReplaceAll(record, []byte("\n"), []byte(" "))...), "linux-image-")
	if meant == "" {
		return kernelFiles{}, err
	}
	if deb, err = work.download(ctx, meant); err != nil {
		return kernelFiles{}, err
	}
	return unpackKernel(ctx, deb, filepath.Join(work.dir, "meant"))
}

// kernelOfImage takes a kernel image with the modules that belong to it.
func kernelOfImage(source KernelSource) (kernelFiles, error) {
	if err := checkKernel(source.From); err != nil {
		return kernelFiles{}, err
	}
	release, err := kernelRelease(source.From)
	if err != nil {
		return kernelFiles{}, err
	}
	files := kernelFiles{vmlinuz: source.From, modules: source.Modules, release: release}
	if source.BuiltIn {
		if source.Modules != "" {
			return kernelFiles{}, fault.Invalidf("--built-in says that there are no modules: leave --modules out")
		}
		return files, nil
	}
	if files.modules == "" {
		files.modules = filepath.Join("/lib/modules", release)
	}
	if _, err := os.Stat(filepath.Join(files.modules, "modules.builtin")); err != nil {
		return kernelFiles{}, fault.Invalidf("there are no modules of kernel %s in %s: name the folder that has them and modules.builtin with --modules, add the kernel from its Debian package, or, if virtio and ext4 are built in, say --built-in", release, files.modules)
	}
	return files, nil
}

// Header of an x86 boot image: Documentation/arch/x86/boot.rst of the kernel.
const (
	bootHeader     = 0x202
	bootVersion    = 0x20e // where the text of the version lies, less 0x200
	bootLoadFlags  = 0x236
	boot64         = 1 << 0
	maxBootVersion = 256
)

// checkKernel refuses what is no kernel that QEMU boots on x86-64, and says what it is instead.
func checkKernel(path string) error {
	head, err := readHead(path, 1024)
	if err != nil {
		return err
	}
	if len(head) > bootLoadFlags && string(head[bootHeader:bootHeader+4]) == "HdrS" {
		if head[bootLoadFlags]&boot64 == 0 {
			return fault.Invalidf("%s is a 32-bit kernel; guests are 64-bit", path)
		}
		return nil
	}
	what := "no kernel image"
	for magic, kind := range map[string]string{
		"\x7fELF": "an ELF file: if it is an uncompressed kernel (vmlinux), use its compressed form", "\x1f\x8b": "a gzip file",
		"MZ": "an EFI program for another kind of machine", "070701": "an initramfs", "#!": "a script",
	} {
		if bytes.HasPrefix(head, []byte(magic)) {
			what = kind
		}
	}
	return fault.Invalidf("%s is %s; a kernel for x86-64 is a file such as vmlinuz or bzImage", path, what)
}

// kernelRelease reads uname -r out of a kernel image.
func kernelRelease(path string) (string, error) {
	head, err := readHead(path, 1<<16+0x200+maxBootVersion)
	if err != nil {
		return "", err
	}
	at := int(binary.LittleEndian.Uint16(head[bootVersion:])) + 0x200
	if at == 0x200 || at >= len(head) {
		return "", fault.Invalidf("%s does not say its version", path)
	}
	text, _, _ := bytes.Cut(head[at:min(at+maxBootVersion, len(head))], []byte{0})
	release, _, _ := strings.Cut(string(text), " ")
	if !kernelName.MatchString(strings.ReplaceAll(release, "+", "_")) {
		return "", fault.Invalidf("%s does not say its version, but %.80q", path, text)
	}
	return release, nil
}

func readHead(path string, size int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, size))
}

// Kernels lists the kernels of a data directory by name.
func Kernels(dataDir string) ([]Kernel, error) {
	entries, err := os.ReadDir(filepath.Join(dataDir, "kernels"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var kernels []Kernel
	for _, e := range entries {
		if !e.IsDir() || !validName(e.Name()) {
			continue
		}
		k, err := OpenKernel(dataDir, e.Name())
		if fault.Is(err, fault.NotFound) {
			continue // half of one
		}
		if err != nil {
			return nil, err
		}
		kernels = append(kernels, k)
	}
	sort.Slice(kernels, func(i, j int) bool { return kernels[i].Name < kernels[j].Name })
	return kernels, nil
}

// RemoveKernel removes a kernel that inUse has no error for. It is asked again when nothing new can find the kernel any
// more; an error then brings the kernel back.
func RemoveKernel(ctx context.Context, dataDir, name string, inUse func() error) error {
	if name == DefaultKernel {
		return fault.Conflictf("kernel '%s' is what VMs get that ask for none, and is not removed", name)
	}
	kernels := filepath.Join(dataDir, "kernels")
	return withLock(ctx, kernels, func() error {
		if _, err := OpenKernel(dataDir, name); err != nil {
			return err
		}
		if err := inUse(); err != nil {
			return err
		}
		away, final := filepath.Join(kernels, ".new-removed-"+name), filepath.Join(kernels, name)
		if err := os.RemoveAll(away); err != nil {
			return err
		}
		if err := os.Rename(final, away); err != nil {
			return err
		}
		if err := inUse(); err != nil {
			return errors.Join(err, os.Rename(away, final))
		}
		if err := os.RemoveAll(away); err != nil {
			return fmt.Errorf("remove kernel %s: %w", name, err)
		}
		return syncDir(kernels)
	})
}
