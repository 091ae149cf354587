package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"vers/internal/catalog"
	"vers/internal/machine"
)

// benchCopy copies one file of random bytes into a VM and out of it with the real program. The baseline is the same copy
// between two processes of the host.
func benchCopy(ctx context.Context, l *lab, r *report, mib int64) (err error) {
	vers := filepath.Join(l.dir, "vers")
	if out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", vers, "vers/cmd/vers").CombinedOutput(); err != nil {
		return fmt.Errorf("build vers: %w: %s", err, out)
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- l.daemon.Serve(serving) }()
	defer func() {
		stop()
		err = errors.Join(err, <-served)
	}()
	file, back := filepath.Join(l.dir, "copy.in"), filepath.Join(l.dir, "copy.out")
	defer os.Remove(file)
	defer os.Remove(back)
	if err := randomFile(file, mib<<20); err != nil {
		return err
	}
	vm, err := l.m.Run(ctx, l.caller, machine.RunRequest{Config: catalog.VMConfig{MemSizeMiB: 512, FSSizeMiB: machine.Defaults.FSSizeMiB + 2*mib}, WaitBoot: true})
	if err != nil {
		return err
	}
	var in, out, local samples
	for _, c := range []struct {
		to      *samples
		program []string
	}{
		{&local, []string{"sh", "-c", `cat "$1" | cat > "$2"`, "sh", file, back}},
		{&in, []string{vers, "copy", "-q", vm.ID, file, ":/root/copy"}},
		{&out, []string{vers, "copy", "-q", vm.ID, ":/root/copy", back}},
	} {
		cmd := exec.CommandContext(ctx, c.program[0], c.program[1:]...)
		cmd.Env = append(os.Environ(), "VERS_URL=unix://"+filepath.Join(l.dir, "versd.sock"), "VERS_API_KEY=", "VERS_TOKEN=")
		began := time.Now()
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", c.program, err, said)
		}
		c.to.add(time.Since(began))
		if c.to == &in {
			continue // compared when it comes back
		}
		if err := exec.CommandContext(ctx, "cmp", file, back).Run(); err != nil {
			return fmt.Errorf("what %v has copied differs: %w", c.program, err)
		}
		if err := os.Remove(back); err != nil {
			return err
		}
	}
	params := map[string]string{"MiB": strconv.FormatInt(mib, 10)}
	r.compare("copy in", "ms", params, in, "cat to cat on the host", local)
	r.compare("copy out", "ms", params, out, "cat to cat on the host", local)
	return nil
}

// randomFile writes random bytes.
func randomFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, size)
	return errors.Join(err, f.Close())
}
