package daemon

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/config"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/image"
	"vers/internal/machine"
)

// assets are what VMs boot from, made once per data directory.
type assets struct {
	kernel image.Kernel
	initrd commit.FileDigest
	image  image.File
}

// Prepare makes kernel, default image and initramfs, as far as they are missing, and says on progress what it does.
func Prepare(ctx context.Context, c config.Server, progress io.Writer) error {
	_, err := prepare(ctx, c, progress)
	return err
}

func prepare(ctx context.Context, c config.Server, progress io.Writer) (assets, error) {
	var a assets
	if err := os.MkdirAll(c.DataDir, 0o711); err != nil {
		return a, fmt.Errorf("make the data directory: %w", err)
	}
	agent, err := agentPath()
	if err != nil {
		return a, err
	}
	if a.kernel, err = image.PrepareKernel(ctx, c.DataDir, progress); err != nil {
		return a, fmt.Errorf("prepare the kernel: %w", err)
	}
	if a.image, err = image.PrepareDefaultImage(ctx, c.DataDir, progress); err != nil {
		return a, fmt.Errorf("prepare the default image: %w", err)
	}
	a.initrd.Name, a.initrd.BLAKE3, err = image.Initrd(ctx, c.DataDir, a.kernel, agent)
	if err != nil {
		return a, fmt.Errorf("compose the initramfs: %w", err)
	}
	return a, nil
}

// agentPath finds vers-agent beside this program.
func agentPath() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), "vers-agent")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the guest agent is missing: %w; versd looks for it beside itself (make build makes both)", err)
	}
	return path, nil
}

// library resolves names of images and kernels.
type library struct {
	dataDir string
	agent   string
	catalog *catalog.Catalog

	mu      sync.Mutex
	initrds map[string]commit.FileDigest // by kernel digest: reading the agent for every run would cost more than a restore
}

func newLibrary(dataDir, agent string, c *catalog.Catalog) *library {
	return &library{dataDir: dataDir, agent: agent, catalog: c, initrds: map[string]commit.FileDigest{}}
}

func (l *library) initrd(ctx context.Context, kernel image.Kernel) (commit.FileDigest, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f, ok := l.initrds[kernel.Digest]; ok {
		return f, nil
	}
	path, digest, err := image.Initrd(ctx, l.dataDir, kernel, l.agent)
	if err != nil {
		return commit.FileDigest{}, err
	}
	f := commit.FileDigest{Name: path, BLAKE3: digest}
	l.initrds[kernel.Digest] = f
	return f, nil
}

// Resolve implements machine.Images.
func (l *library) Resolve(ctx context.Context, orgID, imageName, kernelName string) (machine.Boot, error) {
	img, err := l.catalog.Image(ctx, orgID, imageName)
	if fault.Is(err, fault.NotFound) {
		return machine.Boot{}, fault.NotFoundf("rootfs image '%s' not found", imageName)
	}
	if err != nil {
		return machine.Boot{}, err
	}
	kernel, err := image.OpenKernel(l.dataDir, kernelName)
	if fault.Is(err, fault.NotFound) {
		return machine.Boot{}, fault.NotFoundf("kernel image '%s' not found", kernelName)
	}
	if err != nil {
		return machine.Boot{}, err
	}
	initrd, err := l.initrd(ctx, kernel)
	if err != nil {
		return machine.Boot{}, err
	}
	info, err := os.Stat(filepath.Join(l.dataDir, "images", img.File))
	if err != nil {
		return machine.Boot{}, fmt.Errorf("rootfs image '%s': %w", imageName, err)
	}
	config, err := img.ParseConfig()
	if err != nil {
		return machine.Boot{}, err
	}
	return machine.Boot{
		ImageFile: img.File, ImageDigest: img.Digest, ImageBytes: info.Size(), ImageConfig: config,
		Kernel: commit.FileDigest{Name: kernel.Vmlinuz, BLAKE3: kernel.Digest},
		Initrd: initrd,
	}, nil
}

// registerImage names the default image in the catalogue, or records that it was made anew.
func registerImage(ctx context.Context, c *catalog.Catalog, file image.File) error {
	known, err := c.Image(ctx, "", image.DefaultImage)
	record := catalog.Image{
		ID: ident.New(), Name: image.DefaultImage, File: filepath.Base(file.Path), Digest: file.Digest,
		SizeMiB: file.SizeBytes >> 20, SourceType: "debian", CreatedAt: time.Now(),
	}
	switch {
	case fault.Is(err, fault.NotFound):
		return c.InsertImage(ctx, record)
	case err != nil:
		return err
	case known.Digest != file.Digest:
		record.ID, record.CreatedAt = known.ID, known.CreatedAt
		return c.UpdateImage(ctx, record)
	}
	return nil
}
