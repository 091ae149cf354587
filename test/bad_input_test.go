package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBadInput types what people type by mistake. Each line has its message and exit code (spec/cli.md 2.4, 5.3).
func TestBadInput(t *testing.T) {
	u := newUser(t, shared)
	u.run(`vers run --vm-alias vm1 --mem-size 256 --wait`)
	u.run(`vers repo create app && vers repo tag create app latest $(vers commit vm1 --format json | jq -r .commit_id)`)
	t.Cleanup(func() { u.try("vers repo delete app") })
	commit := u.run(`vers repo tag get app latest --format json | jq -r .commit_id`)

	for _, c := range []struct {
		line    string
		code    int
		message string
	}{
		{`vers run --mem-size -1`, 5, "Invalid memory size (must be positive)"},
		{`vers run --mem-size 0`, 5, "Invalid memory size (must be positive)"},
		{`vers run --vcpu-count 0`, 5, "Invalid vCPU count (must be positive)"},
		{`vers run --fs-size-vm -5`, 5, "Invalid filesystem size (must be positive)"},
		{`vers run --mem-size 99999999`, 1, "Insufficient system resources"},
		{`vers run --vcpu-count 9999`, 1, "Insufficient system resources"},
		{`vers run --fs-size-vm 999999999`, 1, "Insufficient system resources"},
		{`vers run --rootfs custom-image`, 3, "rootfs image 'custom-image' not found"},
		{`vers run --kernel other.bin`, 3, "kernel image 'other.bin' not found"},
		{`vers run-commit app:latest`, 5, "--ref"},
		{`vers run-commit other/app:latest`, 5, "fork"},
		{`vers run-commit app:nothing --ref`, 3, "nothing"},
		{`vers run-commit nothing:latest --ref`, 3, "nothing"},
		{`vers run-commit plain --ref`, 5, "repo:tag"},
		{`vers run-commit 00000000-0000-4000-8000-000000000000`, 3, "not found"},
		{`vers execute nobody true; vers status nobody`, 3, "nobody"},
		{`vers info 00000000-0000-4000-8000-000000000000`, 3, "not found"},
		{`vers branch vm1 --count 0`, 5, "count"},
		{`vers repo create app`, 4, "exists"},
		{`vers repo create 'a/b'`, 5, "name"},
		{`vers repo tag create app latest ` + commit, 4, "exists"},
		{`vers repo tag create app new 00000000-0000-4000-8000-000000000000`, 3, "not found"},
		{`vers repo tag get app nothing`, 3, "nothing"},
		{`vers repo get nothing`, 3, "nothing"},
		{`vers commit delete ` + commit, 4, "app:latest"},
		{`vers status --format xml`, 5, "json"},
		{`cd "$(mktemp -d)" && vers commit`, 3, "HEAD"},
		{`VERS_API_KEY=any VERS_URL=http://127.0.0.1:9 vers status`, 1, "127.0.0.1:9"},
		{`VERS_URL=localhost vers status`, 5, "http"},
	} {
		r := u.try(c.line)
		if r.code != c.code || !strings.Contains(r.stderr, c.message) {
			t.Errorf("%s\n  exit %d, want %d\n  stderr %q, want it to hold %q", c.line, r.code, c.code, r.stderr, c.message)
		}
		if strings.Contains(r.stdout, "Error") {
			t.Errorf("%s\n  the error is on stdout: %q", c.line, r.stdout)
		}
	}
}

// TestWrongKey uses the TCP listener, where a key is needed.
func TestWrongKey(t *testing.T) {
	u := newUser(t, shared)
	url := "http://" + strings.TrimSpace(readFile(t, filepath.Join(shared.data(), "address")))
	r := u.try("VERS_URL=" + url + " VERS_API_KEY=wrong vers status")
	if r.code != 2 || !strings.Contains(r.stderr, "vers login") {
		t.Errorf("wrong key: exit %d, %q; want 2 and advice", r.code, r.stderr)
	}
	key, err := exec.Command(filepath.Join(bin, "versd"), "key", "create", "--config", shared.config(), "--name", "test", "--quiet").Output()
	must(t, err)
	u.run("VERS_URL=" + url + " VERS_API_KEY=" + strings.TrimSpace(string(key)) + " vers status")
}

// TestBrokenConfig: a vers.toml that cannot be read stops the command and names the place.
func TestBrokenConfig(t *testing.T) {
	u := newUser(t, shared)
	must(t, os.WriteFile(filepath.Join(u.dir, "vers.toml"), []byte("[machine]\nmem_size_mib = = 5\n"), 0o600))
	r := u.try("vers run")
	if r.code != 5 || !strings.Contains(r.stderr, "vers.toml") || !strings.Contains(r.stderr, "2") {
		t.Errorf("broken vers.toml: exit %d, %q; want 5, the file and the line", r.code, r.stderr)
	}
	must(t, os.WriteFile(filepath.Join(u.dir, "vers.toml"), []byte("[machine]\nmem_size_mib = -5\n"), 0o600))
	if r := u.try("vers run"); r.code != 5 || !strings.Contains(r.stderr, "Invalid memory size (must be positive)") {
		t.Errorf("negative size in the file: exit %d, %q", r.code, r.stderr)
	}
	must(t, os.Remove(filepath.Join(u.dir, "vers.toml")))
	if r := u.try("vers run --rootfs nothing"); !strings.Contains(r.stderr, "Warning: vers.toml not found, using default configuration") {
		t.Errorf("without vers.toml there is no warning: %q", r.stderr)
	}
}

// TestAmbiguousPrefix: two commits whose ids begin alike cannot be made on purpose, so a prefix shorter than four
// digits and one that fits nothing are tried, and a unique one works.
func TestPrefixes(t *testing.T) {
	u := newUser(t, shared)
	u.run(`vers run --vm-alias vm1 --mem-size 256 --wait`)
	id := u.run(`vers alias vm1`)
	if got := u.run(`vers status ` + id[:8] + ` --format json | jq -r .vm_id`); got != id {
		t.Errorf("prefix %s gives %s", id[:8], got)
	}
	if got := u.run(`vers status vm-` + strings.ToUpper(id) + ` --format json | jq -r .vm_id`); got != id {
		t.Errorf("vm-%s gives %s", strings.ToUpper(id), got)
	}
	if r := u.try(`vers status ` + id[:2]); r.code != 3 {
		t.Errorf("a prefix of two digits: exit %d, %q", r.code, r.stderr)
	}
}

// TestFullDisk fills the file system that holds the data directory while a commit is written.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	image, mountPoint := filepath.Join(dir, "disk.img"), filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mountPoint, 0o711))
	must(t, os.Chmod(dir, 0o711))
	sh(t, "truncate -s 3G "+image+" && mke2fs -q -F -t ext4 -m 0 "+image+" && mount -o loop "+image+" "+mountPoint)
	t.Cleanup(func() { sh(t, "umount "+mountPoint) })
	s, err := startServer(filepath.Join(mountPoint, "s"))
	must(t, err)
	t.Cleanup(func() {
		if err := s.stopAll(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(s.log())
		}
	})
	u := newUser(t, s)
	u.run(`vers run --vm-alias main --mem-size 256 --wait`)
	u.run(`vers execute main 'head -c 16M /dev/urandom > /dev/shm/data; sha256sum < /dev/shm/data > /root/sum'`)
	good := u.run(`vers commit main --format json | jq -r .commit_id`)
	layers := len(globbed(t, s.data()+"/commits/*"))

	sh(t, "fallocate -l $(( $(df --output=avail -B1 "+mountPoint+" | tail -1) - 8*1024*1024 )) "+mountPoint+"/ballast")
	r := u.try(`vers commit main`)
	if r.code == 0 || !strings.Contains(r.stderr, "no space left on device") {
		t.Errorf("commit on a full disk: exit %d, %q; want a failure that says so", r.code, r.stderr)
	}
	if got := u.run(`vers execute main 'sha256sum -c <(sed s,-,/dev/shm/data, /root/sum) >/dev/null && echo goes on'`); got != "goes on" {
		t.Errorf("after the failed commit the machine says %q", got)
	}
	// What the guest itself writes has no room either: it is stopped in the middle of it, and says so.
	u.run(`vers execute main 'nohup sh -c "head -c 20M /dev/zero | tr \\\\000 v > /root/big; sync; md5sum < /root/big > /root/big.sum" >/dev/null 2>&1 &'`)
	eventually(t, "the guest is stopped", func() error {
		if got := u.run(`vers info main --format json | jq -r '.state + " " + .reason'`); !strings.HasPrefix(got, "paused the host's disk is full") {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
	if r := u.try(`vers execute main true`); r.code != 4 || !strings.Contains(r.stderr, "the host's disk is full") {
		t.Errorf("a command in a machine stopped by a full disk: exit %d, %q", r.code, r.stderr)
	}
	must(t, os.Remove(mountPoint+"/ballast"))
	u.run(`vers resume main`)
	eventually(t, "the guest's write is finished", func() error {
		r := u.try(`vers execute main 'test -s /root/big.sum && head -c 20M /dev/zero | tr "\\000" v | md5sum | cmp - /root/big.sum'`)
		if r.code != 0 {
			return fmt.Errorf("%s%s", r.stdout, r.stderr)
		}
		return nil
	})
	eventually(t, "nothing of the failed commit stays", func() error {
		if n := len(globbed(t, s.data()+"/commits/*")); n != layers {
			return os.ErrExist
		}
		return nil
	})
	u.run(`vers run-commit ` + good + ` -N again --wait && vers execute again 'sha256sum -c <(sed s,-,/dev/shm/data, /root/sum)'`)
	u.run(`vers commit main`)
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("bash", "-c", "set -e; "+script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func globbed(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	must(t, err)
	return found
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}
