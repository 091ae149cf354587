package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"vers/internal/rootfs"
)

// Shape of the tree that becomes a file system: like a root file system with a language and its packages in it.
const (
	treeFolders = 200
	treeFiles   = 60     // in each folder
	treeBytes   = 20_000 // of a file on average: 240 MB altogether
)

// benchTree: an archive becomes a file system, beside mke2fs -d of the same tree, extracted before and with the time of
// writing everything to the disk in both.
func benchTree(ctx context.Context, l *lab, r *report, n int) error {
	dir, err := os.MkdirTemp(l.dir, "tree.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	packed, tree := filepath.Join(dir, "tree.tar"), filepath.Join(dir, "tree")
	if err := packTree(packed); err != nil {
		return err
	}
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "tar", "-xf", packed, "-C", tree).CombinedOutput(); err != nil {
		return fmt.Errorf("extract: %w: %s", err, out)
	}
	var ours, baseline samples
	for range n { // in turns, so that both see the same machine
		took, size, err := writeTree(ctx, packed, filepath.Join(dir, "ours"))
		if err != nil {
			return err
		}
		ours.add(took)
		if took, err = mke2fsTree(ctx, tree, filepath.Join(dir, "theirs"), size); err != nil {
			return err
		}
		baseline.add(took)
	}
	params := map[string]string{"files": strconv.Itoa(treeFolders * treeFiles), "mb": strconv.Itoa(treeFolders * treeFiles * treeBytes / 1_000_000)}
	r.compare("tree to ext4: archive read, image on the disk", "ms", params, ours, "mke2fs -d of the extracted tree, synced", baseline)
	return nil
}

func writeTree(ctx context.Context, packed, path string) (time.Duration, int64, error) {
	f, err := os.Open(packed)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	began := time.Now()
	result, err := rootfs.Write(ctx, f, path, rootfs.Options{HeadroomBytes: 64 << 20})
	return time.Since(began), result.SizeBytes, errors.Join(err, os.Remove(path))
}

func mke2fsTree(ctx context.Context, tree, path string, size int64) (time.Duration, error) {
	began := time.Now()
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", "size=16", "-d", tree, path)
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	err = f.Sync()
	return time.Since(began), errors.Join(err, os.Remove(path))
}

// packTree writes an archive of files of random bytes and lengths, the same every time.
func packTree(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	random, w := rand.New(rand.NewPCG(1, 2)), tar.NewWriter(f)
	source := rand.NewChaCha8([32]byte{})
	for d := range treeFolders {
		for i := range treeFiles {
			size := random.Int64N(2 * treeBytes)
			hdr := &tar.Header{Name: fmt.Sprintf("usr/lib/package-%d/file-%d", d, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(1_600_000_000, 0)}
			if err := w.WriteHeader(hdr); err != nil {
				return err
			}
			if _, err := io.CopyN(w, source, size); err != nil {
				return err
			}
		}
	}
	return errors.Join(w.Close(), f.Sync())
}
