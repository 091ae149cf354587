package fake

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vers/internal/catalog"
	"vers/internal/commit"
	"vers/internal/fault"
	"vers/internal/ident"
	"vers/internal/image"
	"vers/internal/machine"
	"vers/internal/machine/testguest"
)

// Images implements machine.Images. Images are known to the catalogue, kernels lie in the data directory, as in a real
// server; what is in the files is of testguest, or nothing.
type Images struct {
	dataDir string
	catalog *catalog.Catalog
}

var _ machine.Images = (*Images)(nil)

// Image describes an image to add.
type Image struct {
	Name  string
	OrgID string // "": everybody's
	MiB   int64  // 0: 1
	Ends  bool   // the guest powers off as soon as it runs
}

// NewImages makes the kernel and the image that machine.Defaults name, unless the data directory has them already.
func NewImages(ctx context.Context, dataDir string, c *catalog.Catalog) (*Images, error) {
	i := &Images{dataDir: dataDir, catalog: c}
	if _, err := image.OpenKernel(dataDir, machine.Defaults.KernelName); fault.Is(err, fault.NotFound) {
		if err := i.AddKernel(machine.Defaults.KernelName, "1"); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	if _, err := c.Image(ctx, "", machine.Defaults.ImageName); !fault.Is(err, fault.NotFound) {
		return i, err
	}
	return i, i.Add(ctx, Image{Name: machine.Defaults.ImageName})
}

// Add makes an image, or makes it anew: with another digest.
func (i *Images) Add(ctx context.Context, want Image) error {
	record := catalog.Image{
		ID: ident.New(), OrgID: want.OrgID, Name: want.Name, SizeMiB: max(want.MiB, 1), SourceType: "fake", CreatedAt: time.Now(),
	}
	record.File, record.Digest = record.ID+".ext4", record.ID
	path := filepath.Join(i.dataDir, "images", record.File)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	write := testguest.WriteCounting
	if want.Ends {
		write = testguest.WriteEnding
	}
	// The file gets its name when it is named in the catalogue: until then it would be collected.
	temp := filepath.Join(filepath.Dir(path), ".new-"+record.File)
	if err := write(temp); err != nil {
		return err
	}
	if err := os.Truncate(temp, record.SizeMiB<<20); err != nil {
		return err
	}
	if err := i.record(ctx, record); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

func (i *Images) record(ctx context.Context, record catalog.Image) error {
	known, err := i.catalog.Image(ctx, record.OrgID, record.Name)
	if err == nil && known.OrgID == record.OrgID {
		record.ID = known.ID
		return i.catalog.UpdateImage(ctx, record)
	}
	return i.catalog.InsertImage(ctx, record)
}

// AddKernel makes a kernel, or makes it anew with another digest.
func (i *Images) AddKernel(name, digest string) error {
	dir := filepath.Join(i.dataDir, "kernels", name)
	if err := os.MkdirAll(filepath.Join(dir, "modules"), 0o755); err != nil {
		return err
	}
	for file, text := range map[string]string{"vmlinuz": "", "release": "fake", "digest": digest} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Resolve implements machine.Images, with the messages of internal/daemon.
func (i *Images) Resolve(ctx context.Context, orgID, imageName, kernelName string) (machine.Boot, error) {
	img, err := i.catalog.Image(ctx, orgID, imageName)
	if err != nil {
		return machine.Boot{}, err
	}
	kernel, err := image.OpenKernel(i.dataDir, kernelName)
	if fault.Is(err, fault.NotFound) {
		return machine.Boot{}, fault.NotFoundf("kernel image '%s' not found", kernelName)
	}
	if err != nil {
		return machine.Boot{}, err
	}
	info, err := os.Stat(filepath.Join(i.dataDir, "images", img.File))
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
		Initrd: commit.FileDigest{Name: filepath.Join(i.dataDir, "initrd", "fake.img"), BLAKE3: "fake"},
	}, nil
}
