package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A test ends its servers when it ends. When the test program ends before that, by a panic, by -timeout or killed, nobody
// does: VMs outlive versd, and versd whoever started it. So TestMain starts the program once more, as a warden: in a session
// of its own, reading from a pipe that ends with the test program, whatever ends it.

// wardenOf is the variable that makes a test program the warden of a folder, with all that runs in it.
const wardenOf = "VERS_TEST_WARDEN_OF"

// warden is the other end of it. A file that nobody refers to would be closed.
type warden struct {
	cmd      *exec.Cmd
	lifeline *os.File
}

func startWarden(dir string) (*warden, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Stdin, cmd.Stderr = r, os.Stderr
	cmd.Env = append(os.Environ(), wardenOf+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is not for it
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return &warden{cmd, w}, nil
}

// end is for a run that has cleaned up by itself.
func (w *warden) end() error {
	return errors.Join(w.lifeline.Close(), w.cmd.Wait())
}

// becomeWarden returns in a program that is none.
func becomeWarden() {
	dir, asked := os.LookupEnv(wardenOf)
	if !asked {
		return
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "The tests ended before they were done; what they started in", dir, "is ended now.")
	if err := endRun(dir); err != nil {
		fmt.Fprintln(os.Stderr, "test: clean up after the tests:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// endRun ends all servers below a folder with their VMs, then any process that is left there, and removes the folder.
func endRun(dir string) error {
	var all error
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "data":
			return fs.SkipDir
		case d.Name() == "versd.toml":
			out, err := exec.Command(filepath.Join(dir, "bin", "versd"), "stop", "--all", "--config", path).CombinedOutput()
			if err != nil {
				all = errors.Join(all, fmt.Errorf("versd stop --all --config %s: %w: %s", path, err, out))
			}
		}
		return nil
	})
	all = errors.Join(all, err)
	for _, pid := range processesIn(dir) { // a versd that was just starting; what a test ran in the background
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return errors.Join(all, err)
	}
	for _, line := range slices.Backward(strings.Split(string(table), "\n")) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			if err := syscall.Unmount(fields[4], syscall.MNT_DETACH); err != nil {
				return errors.Join(all, fmt.Errorf("unmount %s: %w", fields[4], err)) // nothing is removed through a mount
			}
		}
	}
	return errors.Join(all, os.RemoveAll(dir))
}

// processesIn lists the processes whose program or working directory is below a folder: versd and its VMs.
func processesIn(dir string) []int {
	var found []int
	links, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range links {
		for _, link := range []string{"exe", "cwd"} {
			if path, err := os.Readlink(filepath.Join(process, link)); err == nil && strings.HasPrefix(path, dir+"/") {
				if pid, err := strconv.Atoi(filepath.Base(process)); err == nil {
					found = append(found, pid)
				}
				break
			}
		}
	}
	return found
}

// TestKilledRun: of a run of the tests that is killed nothing is left, neither a server nor a VM whose server a test has
// killed nor a file.
func TestKilledRun(t *testing.T) {
	const killed, says = "VERS_TEST_KILLED_RUN", "killed with 3 processes in "
	if os.Getenv(killed) != "" {
		newUser(t, shared).run("vers run --mem-size 192")
		s := newServer(t)
		newUser(t, s).run("vers run --mem-size 192")
		s.kill()
		dir := filepath.Dir(bin)
		fmt.Printf("killed with %d processes in %s\n", len(processesIn(dir)), dir)
		must(t, syscall.Kill(os.Getpid(), syscall.SIGKILL))
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), killed+"=1", programs+"="+bin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out // until the warden has ended too
	err := cmd.Run()
	_, dir, found := strings.Cut(out.String(), says)
	dir, _, _ = strings.Cut(dir, "\n")
	if err == nil || !found {
		t.Fatalf("%v; no %q in\n%s", err, says, &out)
	}
	if pids := processesIn(dir); len(pids) > 0 {
		t.Errorf("processes %v are left\n%s", pids, &out)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left (%v)\n%s", dir, err, &out)
	}
}
