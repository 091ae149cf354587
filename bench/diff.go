package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"vers/internal/machine"
)

// benchDiff compares two commits of a VM that differ in files files of 4 KiB. The baseline is what a comparison by mounting
// would have to do first: make both disks raw files.
func benchDiff(ctx context.Context, l *lab, r *report, files, n int) error {
	vm, err := l.run(ctx, 512, false)
	if err != nil {
		return err
	}
	var commits [2]machine.Commit
	for i, script := range []string{"sync", fmt.Sprintf("mkdir /root/d && cd /root/d && i=0; while [ $i -lt %d ]; do head -c 4096 /dev/urandom > f$i; i=$((i+1)); done; sync", files)} {
		if err := l.exec(ctx, vm.ID, script); err != nil {
			return err
		}
		if commits[i], _, err = l.m.Commit(ctx, l.caller, vm.ID, machine.CommitRequest{}); err != nil {
			return err
		}
	}
	var ours, convert samples
	for range n {
		began := time.Now()
		d, err := l.m.Diff(ctx, machine.DiffRequest{From: commits[0].ID, To: commits[1].ID})
		if err != nil {
			return err
		}
		ours.add(time.Since(began))
		if d.Totals.Added != int64(files)+1 || len(d.Entries) < files+1 {
			return fmt.Errorf("the diff has %+v, not %d files and their directory", d.Totals, files)
		}
		if len(convert) < 3 {
			took, err := l.convert(ctx, commits[:])
			if err != nil {
				return err
			}
			convert.add(took)
		}
	}
	r.compare("diff of two commits", "ms", map[string]string{"disk MiB": strconv.FormatInt(machine.Defaults.FSSizeMiB, 10), "files": strconv.Itoa(files)},
		ours, "qemu-img convert of both disks", convert)
	return nil
}

// convert makes raw files of the disks of commits and says how long that took.
func (l *lab) convert(ctx context.Context, commits []machine.Commit) (time.Duration, error) {
	began := time.Now()
	for _, c := range commits {
		files, err := l.m.Commits.Files(ctx, c.LayerID)
		if err != nil {
			return 0, err
		}
		raw := filepath.Join(l.dir, "convert.raw")
		if out, err := exec.CommandContext(ctx, "qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", files[len(files)-1], raw).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("qemu-img convert: %w: %s", err, out)
		}
		if err := os.Remove(raw); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}
