package image

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"vers/internal/fault"
)

// wantedModule is a module that guests use. One that is optional is left out where the kernel has none.
type wantedModule struct {
	name     string
	optional bool
}

// guestModules are what a guest needs of the kernel's modules; their dependencies are found in the modules themselves.
// Guests see virtio devices on PCI only, and their root is ext4, which asks for crc32c without saying so in its
// dependencies. overlay and fuse are for the software in guests: container engines, AppImages.
func guestModules() []wantedModule {
	return []wantedModule{{"crc32c_generic", true}, {"ext4", false}, {"virtio_pci", false}, {"virtio_blk", false}, {"virtio_net", false},
		{"virtio_rng", false}, {"virtio_console", false}, {"overlay", true}, {"fuse", true}}
}

// moduleTree is the module directory of one kernel: lib/modules/<release> as its package has it.
type moduleTree struct {
	dir     string
	files   map[string]string // module name → path relative to dir
	builtin map[string]bool
}

// moduleName is the kernel's name of a module file: virtio-rng.ko and virtio_rng are the same module.
func moduleName(file string) string {
	name := filepath.Base(file)
	name = strings.TrimSuffix(strings.TrimSuffix(name, ".xz"), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func isModule(file string) bool {
	return strings.HasSuffix(file, ".ko") || strings.HasSuffix(file, ".ko.xz")
}

// openModuleTree lists the modules below dir and those built into the kernel.
func openModuleTree(dir string) (*moduleTree, error) {
	t := &moduleTree{dir: dir, files: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !entry.IsDir() && isModule(path) {
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			t.files[moduleName(path)] = rel
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list kernel modules: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("list built-in modules: %w", err)
	}
	for _, line := range strings.Fields(string(data)) {
		t.builtin[moduleName(line)] = true
	}
	return t, nil
}

// loadOrder gives the files of the wanted modules and everything they depend on, relative to the tree, each after what
// it needs. Built-in modules are left out. depends reads the dependencies of one module file.
func (t *moduleTree) loadOrder(wanted []wantedModule, depends func(path string) ([]string, error)) ([]string, error) {
	const (
		entered = 1
		done    = 2
	)
	var order []string
	state := map[string]int{}
	var visit func(name, by string) error
	visit = func(name, by string) error {
		switch {
		case state[name] == done || t.builtin[name]:
			return nil
		case state[name] == entered:
			return fault.Invalidf("kernel module %s depends on itself through %s", name, by)
		}
		file, ok := t.files[name]
		if !ok {
			return fault.NotFoundf("the kernel has no module %s (needed by %s), neither built in nor as %s.ko or %s.ko.xz below %s", name, by, name, name, t.dir)
		}
		state[name] = entered
		deps, err := depends(filepath.Join(t.dir, file))
		if err != nil {
			return err
		}
		for _, dep := range deps {
			if err := visit(moduleName(dep), name); err != nil {
				return err
			}
		}
		state[name] = done
		order = append(order, file)
		return nil
	}
	for _, module := range wanted {
		name := moduleName(module.name)
		if module.optional && t.files[name] == "" {
			continue
		}
		if err := visit(name, "the guest"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleDepends reads the names after depends= in a module's .modinfo section: strings separated by zero bytes.
func moduleDepends(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read kernel module %s: %w", path, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fault.Invalidf("kernel module %s has no .modinfo section", path)
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo of %s: %w", path, err)
	}
	return parseDepends(data), nil
}

func parseDepends(modinfo []byte) []string {
	var deps []string
	for _, entry := range bytes.Split(modinfo, []byte{0}) {
		list, ok := bytes.CutPrefix(entry, []byte("depends="))
		if !ok {
			continue
		}
		for _, dep := range strings.Split(string(list), ",") {
			if dep = strings.TrimSpace(dep); dep != "" {
				deps = append(deps, dep)
			}
		}
	}
	sort.Strings(deps)
	return deps
}
