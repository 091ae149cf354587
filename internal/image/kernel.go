package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"vers/internal/fault"
	"vers/internal/program"
)

// kernelMeta is Debian's package that always depends on the newest kernel for virtual machines.
const kernelMeta = "linux-image-cloud-amd64"

// Kernel is a kernel that VMs boot.
type Kernel struct {
	Name       string // as in kernel_name
	Vmlinuz    string // path of the compressed kernel
	ModulesDir string // its modules, as below lib/modules/<release>
	Release    string // uname -r
	Digest     string // over all files
}

// PrepareKernel makes the kernel default.bin out of Debian's newest cloud kernel. The package is unpacked, not
// installed. Progress lines go to progress, which may be nil.
func PrepareKernel(ctx context.Context, dataDir string, progress io.Writer) (Kernel, error) {
	if k, err := OpenKernel(dataDir, DefaultKernel); err == nil {
		return k, nil
	}
	kernels := filepath.Join(dataDir, "kernels")
	err := withLock(ctx, kernels, func() error {
		if _, err := OpenKernel(dataDir, DefaultKernel); err == nil {
			return nil
		}
		sweep(kernels)
		if err := makeKernel(ctx, kernels, DefaultKernel, progress); err != nil {
			return fmt.Errorf("prepare kernel %s: %w", DefaultKernel, err)
		}
		return nil
	})
	if err != nil {
		return Kernel{}, err
	}
	return OpenKernel(dataDir, DefaultKernel)
}

// OpenKernel finds a kernel of the data directory by name. fault.NotFound if there is none.
func OpenKernel(dataDir, name string) (Kernel, error) {
	if !validName(name) {
		return Kernel{}, fault.Invalidf("kernel name %q is not a plain file name", name)
	}
	dir := filepath.Join(dataDir, "kernels", name)
	k := Kernel{Name: name, Vmlinuz: filepath.Join(dir, "vmlinuz"), ModulesDir: filepath.Join(dir, "modules")}
	for file, value := range map[string]*string{"release": &k.Release, "digest": &k.Digest} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if errors.Is(err, fs.ErrNotExist) {
			return Kernel{}, fault.NotFoundf("kernel image '%s' not found", name)
		} else if err != nil {
			return Kernel{}, fmt.Errorf("open kernel %s: %w", name, err)
		}
		*value = strings.TrimSpace(string(data))
	}
	for _, path := range []string{k.Vmlinuz, k.ModulesDir} {
		if _, err := os.Stat(path); err != nil {
			return Kernel{}, fault.NotFoundf("kernel image '%s' is incomplete: %w; remove %s to have it made again", name, err, dir)
		}
	}
	return k, nil
}

// makeKernel downloads and publishes the kernel as <kernels>/<name>. Called with the lock held.
func makeKernel(ctx context.Context, kernels, name string, progress io.Writer) error {
	source, err := newApt(progress)
	if err != nil {
		return err
	}
	defer os.RemoveAll(source.dir)
	pkg, err := source.dependency(ctx, kernelMeta, "linux-image-")
	if err != nil {
		return err
	}
	deb, err := source.download(ctx, pkg)
	if err != nil {
		return err
	}
	say(progress, "unpacking the kernel")
	unpacked, err := unpackKernel(ctx, deb, filepath.Join(source.dir, "tree"))
	if err != nil {
		return err
	}
	return publishKernel(ctx, kernels, name, unpacked, progress)
}

// kernelFiles are what a kernel is made of.
type kernelFiles struct {
	vmlinuz string
	modules string // lib/modules/<release>; "": every driver is built into the kernel
	release string // uname -r
}

// unpackKernel unpacks a kernel package into tree. fault.NotFound if there is no kernel in it.
func unpackKernel(ctx context.Context, deb, tree string) (kernelFiles, error) {
	if _, err := program.Run(ctx, exec.CommandContext(ctx, "dpkg-deb", "-x", deb, tree)); err != nil {
		return kernelFiles{}, err
	}
	found, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return kernelFiles{}, fault.NotFoundf("there are %d kernels (/boot/vmlinuz-…) in the package %s, want one", len(found), filepath.Base(deb))
	}
	k := kernelFiles{vmlinuz: found[0], release: strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-")}
	k.modules = filepath.Join(tree, "lib", "modules", k.release)
	if _, err := os.Stat(k.modules); err != nil {
		k.modules = filepath.Join(tree, "usr", "lib", "modules", k.release) // Debian 13
	}
	return k, nil
}

// publishKernel makes <kernels>/<name> out of a kernel's files, complete or not at all. Called with the lock held.
func publishKernel(ctx context.Context, kernels, name string, files kernelFiles, progress io.Writer) error {
	stage, err := os.MkdirTemp(kernels, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	if err := stageKernel(ctx, files, stage); err != nil {
		return err
	}
	// What is there now is not whole, or OpenKernel would have found it.
	final := filepath.Join(kernels, name)
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	if err := os.Rename(stage, final); err != nil {
		return err
	}
	say(progress, "kernel %s is ready (%s)", name, files.release)
	return syncDir(kernels)
}

// stageKernel copies what guests need of a kernel.
func stageKernel(ctx context.Context, files kernelFiles, stage string) error {
	if err := copyFile(files.vmlinuz, filepath.Join(stage, "vmlinuz")); err != nil {
		return err
	}
	if err := stageModules(ctx, files, filepath.Join(stage, "modules")); err != nil {
		return err
	}
	digest, err := digestTree(stage)
	if err != nil {
		return err
	}
	for file, text := range map[string]string{"release": files.release, "digest": digest} {
		if err := writeDurable(filepath.Join(stage, file), []byte(text+"\n"), 0o644); err != nil {
			return err
		}
	}
	return os.Chmod(stage, 0o755)
}

// stageModules copies the modules that guests load, uncompressed, and the list of those that are built in.
func stageModules(ctx context.Context, files kernelFiles, stage string) error {
	if files.modules == "" {
		return stageBuiltIn(stage)
	}
	all, err := openModuleTree(files.modules)
	if err != nil {
		return err
	}
	plain, err := os.MkdirTemp("", "vers-modules-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(plain)
	paths := map[string]string{} // of uncompressed files, by that of the module
	order, err := all.loadOrder(guestModules(), func(path string) ([]string, error) {
		file, err := decompressModule(ctx, path, plain)
		if err != nil {
			return nil, err
		}
		paths[path] = file
		return moduleDepends(file)
	})
	if err != nil {
		return err
	}
	for _, file := range order {
		if err := copyFile(paths[filepath.Join(files.modules, file)], filepath.Join(stage, plainModule(file))); err != nil {
			return err
		}
	}
	return copyFile(filepath.Join(files.modules, "modules.builtin"), filepath.Join(stage, "modules.builtin"))
}

// stageBuiltIn notes that a kernel needs no modules.
func stageBuiltIn(stage string) error {
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return err
	}
	var list strings.Builder
	for _, module := range guestModules() {
		fmt.Fprintf(&list, "kernel/%s.ko\n", module.name)
	}
	return writeDurable(filepath.Join(stage, "modules.builtin"), []byte(list.String()), 0o644)
}

// plainModule is the path of a module without the suffix of its compression.
func plainModule(path string) string { return strings.TrimSuffix(path, ".xz") }

// decompressModule gives the path of a module's uncompressed form, which it writes into scratch where the module is
// compressed (as Debian 13 has them).
func decompressModule(ctx context.Context, path, scratch string) (string, error) {
	if plainModule(path) == path {
		return path, nil
	}
	plain := filepath.Join(scratch, filepath.Base(plainModule(path)))
	out, err := os.Create(plain)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "xz", "-d", "-c", "-q", path)
	cmd.Stdout = out
	_, err = program.Run(ctx, cmd)
	return plain, errors.Join(err, out.Close())
}

// copyFile copies a file, made durable, with the directories it needs.
func copyFile(from, to string) (err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}
