package image_test

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vers/internal/fault"
	"vers/internal/image"
	"vers/internal/image/imagetest"
)

// fakeKernel writes a file with the boot header of a kernel.
func fakeKernel(t *testing.T, flags byte, version string) string {
	t.Helper()
	head := make([]byte, 2048)
	copy(head[0x202:], "HdrS")
	head[0x236] = flags
	binary.LittleEndian.PutUint16(head[0x20e:], 0x300)
	copy(head[0x500:], version)
	return writeTemp(t, "vmlinuz", string(head))
}

func writeTemp(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// nothingIn checks that a data directory has no kernel, nor half of one.
func nothingIn(t *testing.T, data string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(data, "kernels"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != ".lock" {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

func TestAddKernelRefusals(t *testing.T) {
	good := fakeKernel(t, 1, "6.9.0-mine (root@host) #1")
	bare := t.TempDir() // a folder of modules that lacks what guests need
	if err := os.WriteFile(filepath.Join(bare, "modules.builtin"), []byte("kernel/fs/ext4/ext4.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		name   string
		source image.KernelSource
		kind   fault.Kind
		says   string
	}{
		"name with a slash":   {"a/b", image.KernelSource{From: good, BuiltIn: true}, fault.Invalid, "not valid"},
		"name of the default": {"default.bin", image.KernelSource{From: good, BuiltIn: true}, fault.Invalid, "another name"},
		"no such file":        {"x", image.KernelSource{From: "./absent"}, fault.NotFound, "no file ./absent"},
		"option as a package": {"x", image.KernelSource{From: "-oDir=/"}, fault.NotFound, "no name of a Debian package"},
		"folder":              {"x", image.KernelSource{From: bare}, fault.Invalid, "is no file"},
		"text":                {"x", image.KernelSource{From: writeTemp(t, "notes", "hello")}, fault.Invalid, "no kernel image"},
		"uncompressed":        {"x", image.KernelSource{From: writeTemp(t, "vmlinux", "\x7fELF…")}, fault.Invalid, "compressed form"},
		"empty":               {"x", image.KernelSource{From: writeTemp(t, "nothing", "")}, fault.Invalid, "no kernel image"},
		"32 bit":              {"x", image.KernelSource{From: fakeKernel(t, 0, "6.9.0"), BuiltIn: true}, fault.Invalid, "32-bit"},
		"no version":          {"x", image.KernelSource{From: fakeKernel(t, 1, ""), BuiltIn: true}, fault.Invalid, "version"},
		"path as a version":   {"x", image.KernelSource{From: fakeKernel(t, 1, "../../etc x"), BuiltIn: true}, fault.Invalid, "version"},
		"no modules anywhere": {"x", image.KernelSource{From: good}, fault.Invalid, "--modules"},
		"no virtio":           {"x", image.KernelSource{From: good, Modules: bare}, fault.Invalid, "no module virtio_pci"},
		"contradiction":       {"x", image.KernelSource{From: good, Modules: bare, BuiltIn: true}, fault.Invalid, "leave --modules out"},
		"broken package":      {"x", image.KernelSource{From: writeTemp(t, "linux.deb", "!<arch>\nbroken")}, fault.Internal, "dpkg-deb"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			_, err := image.AddKernel(t.Context(), dir, tt.name, tt.source, nil)
			if err == nil || fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v (%v)", err, fault.KindOf(err))
			}
			nothingIn(t, dir)
		})
	}
}

// debianPackage packs a tree as a package with the control fields given.
func debianPackage(t *testing.T, tree, name, fields string) string {
	t.Helper()
	control := filepath.Join(tree, "DEBIAN", "control")
	if err := os.MkdirAll(filepath.Dir(control), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "Package: " + name + "\nVersion: 1\nArchitecture: amd64\nMaintainer: Nobody <nobody@example.org>\nDescription: test\n" + fields
	if err := os.WriteFile(control, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(t.TempDir(), name+"_1_amd64.deb")
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return deb
}

// The kernel that there is, packed as Debian does, with compressed modules as in Debian 13: what is added is the same kernel.
func TestAddKernelFromPackage(t *testing.T) {
	kernel, _ := imagetest.Open(t)
	tree, data := t.TempDir(), t.TempDir()
	modules := filepath.Join(tree, "usr", "lib", "modules", kernel.Release)
	for _, dir := range []string{filepath.Join(tree, "boot"), filepath.Dir(modules)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := `cp "$1" "$2/boot/vmlinuz-$3" && cp -r "$4" "$5" && find "$5" -name 'virtio*.ko' -exec xz {} +`
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", script, "sh", kernel.Vmlinuz, tree, kernel.Release, kernel.ModulesDir, modules).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	said := &strings.Builder{}
	made, err := image.AddKernel(t.Context(), data, "second", image.KernelSource{From: debianPackage(t, tree, "linux-image-second", "")}, said)
	if err != nil {
		t.Fatal(err)
	}
	if made.Name != "second" || made.Release != kernel.Release || made.Digest != kernel.Digest {
		t.Errorf("made %+v of %+v; said %s", made, kernel, said)
	}
	if _, err := image.AddKernel(t.Context(), data, "second", image.KernelSource{From: kernel.Vmlinuz}, nil); !fault.Is(err, fault.Conflict) {
		t.Errorf("added twice: %v", err)
	}
	// The same from the image itself and its modules, and without any.
	if made, err = image.AddKernel(t.Context(), data, "third", image.KernelSource{From: kernel.Vmlinuz, Modules: kernel.ModulesDir}, nil); err != nil || made.Digest != kernel.Digest {
		t.Errorf("from the image: %+v, %v", made, err)
	}
	if made, err = image.AddKernel(t.Context(), data, "bare", image.KernelSource{From: kernel.Vmlinuz, BuiltIn: true}, nil); err != nil || made.Digest == kernel.Digest {
		t.Errorf("without modules: %+v, %v", made, err)
	}
	if _, _, err := image.Initrd(t.Context(), data, made, kernel.Vmlinuz); err != nil {
		t.Errorf("no initramfs without modules: %v", err)
	}
	all, err := image.Kernels(data)
	if err != nil || len(all) != 3 || all[0].Name != "bare" || all[2].Name != "third" {
		t.Errorf("all: %+v, %v", all, err)
	}
}

func TestMetaPackageWithoutKernel(t *testing.T) {
	deb := debianPackage(t, t.TempDir(), "nothing", "Depends: libc6 (>= 2), bash\n")
	_, err := image.AddKernel(t.Context(), t.TempDir(), "x", image.KernelSource{From: deb}, nil)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "0 kernels") {
		t.Errorf("got %v", err)
	}
}

func TestRemoveKernel(t *testing.T) {
	data := t.TempDir()
	kernel := fakeKernel(t, 1, "6.9.0-mine")
	if _, err := image.AddKernel(t.Context(), data, "mine", image.KernelSource{From: kernel, BuiltIn: true}, nil); err != nil {
		t.Fatal(err)
	}
	free := func() error { return nil }
	if err := image.RemoveKernel(t.Context(), data, "default.bin", free); !fault.Is(err, fault.Conflict) {
		t.Errorf("the default: %v", err)
	}
	if err := image.RemoveKernel(t.Context(), data, "absent", free); !fault.Is(err, fault.NotFound) {
		t.Errorf("none: %v", err)
	}
	used := errors.New("used")
	asked := 0
	taken := func() error { // by a VM that was started just before the name was gone
		if asked++; asked == 2 {
			return used
		}
		return nil
	}
	if err := image.RemoveKernel(t.Context(), data, "mine", taken); !errors.Is(err, used) {
		t.Errorf("taken meanwhile: %v", err)
	}
	if k, err := image.OpenKernel(data, "mine"); err != nil || k.Release != "6.9.0-mine" {
		t.Errorf("not brought back: %+v, %v", k, err)
	}
	if err := image.RemoveKernel(t.Context(), data, "mine", free); err != nil {
		t.Fatal(err)
	}
	nothingIn(t, data)
}
