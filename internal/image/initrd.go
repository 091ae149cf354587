package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"vers/internal/fault"
)

// initrdFormat changes whenever the same kernel and agent give another archive.
const initrdFormat = "vers initrd 1"

// Initrd composes the initramfs of a kernel and an agent, and caches it under the digests of both. The
// digest returned is that of the file's content.
//
//	/init               the agent
//	/lib/modules/order  paths of modules, one a line, each after those it needs
//	/lib/modules/…      the modules
//	/dev/console        the kernel opens it before /init runs
//	/proc /sys /dev /run /newroot
func Initrd(ctx context.Context, dataDir string, kernel Kernel, agentPath string) (file, digest string, err error) {
	agent, err := DigestFile(agentPath)
	if err != nil {
		return "", "", fault.Unavailablef("cannot read the guest agent; vers-agent must lie beside versd: %w", err)
	}
	dir := filepath.Join(dataDir, "initrd")
	file = filepath.Join(dir, digestStrings(initrdFormat, kernel.Digest, agent)+".img")
	if digest, err := DigestFile(file); err == nil {
		return file, digest, nil
	}
	if err := ctx.Err(); err != nil {
		return "", "", err
	}
	data, err := composeInitrd(kernel, agentPath)
	if err != nil {
		return "", "", fmt.Errorf("compose the initramfs: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	if err := writeDurable(file, data, 0o644); err != nil {
		return "", "", fmt.Errorf("write the initramfs: %w", err)
	}
	digest, err = DigestFile(file)
	return file, digest, err
}

// composeInitrd gives the same bytes for the same input.
func composeInitrd(kernel Kernel, agentPath string) ([]byte, error) {
	tree, err := openModuleTree(kernel.ModulesDir)
	if err != nil {
		return nil, err
	}
	order, err := tree.loadOrder(guestModules(), moduleDepends)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	zip, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	archive := newCpioWriter(zip)
	for _, dir := range initrdDirs(order) {
		archive.Dir(dir, 0o755)
	}
	archive.Char("dev/console", 0o600, 5, 1)
	archive.Char("dev/null", 0o666, 1, 3)
	archive.Copy("init", 0o755, agentPath)
	var list strings.Builder
	for _, file := range order {
		name := path.Join("lib/modules", filepath.ToSlash(file))
		fmt.Fprintf(&list, "/%s\n", name)
		archive.Copy(name, 0o644, filepath.Join(kernel.ModulesDir, file))
	}
	archive.File("lib/modules/order", 0o644, []byte(list.String()))
	if err := errors.Join(archive.Close(), zip.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// initrdDirs lists the directories, parents first.
func initrdDirs(modules []string) []string {
	set := map[string]bool{"dev": true, "proc": true, "sys": true, "run": true, "newroot": true}
	for _, file := range modules {
		for dir := path.Join("lib/modules", path.Dir(filepath.ToSlash(file))); dir != "."; dir = path.Dir(dir) {
			set[dir] = true
		}
	}
	dirs := make([]string, 0, len(set))
	for dir := range set {
		dirs = append(dirs, dir)
	}
	sort.Strings(dirs)
	return dirs
}
