package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vers/internal/disk"
	"vers/internal/machine"
	"vers/internal/machine/testguest"
	"vers/internal/memory"
)

// countingSpec describes a machine with the counting guest, in directories of the test.
func countingSpec(t testing.TB, d *Driver, ram int64) machine.Spec {
	t.Helper()
	root := t.TempDir()
	s := machine.Spec{ID: "counting", Dir: filepath.Join(root, "vm"), Hardware: d.Host().Hardware}
	s.Hardware.MemoryBytes, s.Hardware.VCPUs = ram, 1
	if d.confinement == confinedAsRoot {
		s.UID, s.GID = testUID, testUID
	}
	must(t, os.Mkdir(s.Dir, 0o700))
	must(t, os.Mkdir(filepath.Join(root, "layers"), 0o755))
	image := filepath.Join(root, "image.raw")
	must(t, testguest.WriteCounting(image))
	s.Disk = []machine.Layer{{Path: image, Format: "raw"}, newLayer(t, s, "top", machine.Layer{Path: image, Format: "raw"})}
	own(t, s, s.Dir)
	return s
}

func newLayer(t testing.TB, s machine.Spec, name string, below machine.Layer) machine.Layer {
	t.Helper()
	layer := machine.Layer{Path: filepath.Join(filepath.Dir(s.Dir), "layers", name+".qcow2"), Format: "qcow2"}
	must(t, disk.CreateOverlay(layer.Path, testguest.DiskBytes, below.Path, below.Format))
	own(t, s, layer.Path)
	return layer
}

func own(t testing.TB, s machine.Spec, path string) {
	t.Helper()
	if s.UID != 0 {
		must(t, os.Chown(path, s.UID, s.GID))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func startFor(t testing.TB, d *Driver, s machine.Spec) *Instance {
	t.Helper()
	i, err := d.Start(t.Context(), s)
	must(t, err)
	killAfter(t, i)
	return i.(*Instance)
}

// TestConfinement asks /proc what the process may do.
func TestConfinement(t *testing.T) {
	d := newTestDriver(t, acceleratorTCG)
	s := countingSpec(t, d, 64<<20)
	pid := startFor(t, d, s).Process().PID
	status := procStatus(t, pid)
	for field, want := range map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if status[field] != want {
			t.Errorf("%s is %s, want %s", field, status[field], want)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	must(t, err)
	if !strings.Contains(string(limits), "Max core file size        0                    0") {
		t.Errorf("core dumps are possible:\n%s", limits)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d (%v), want its own: %d", sid, err, pid)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || cwd != s.Dir {
		t.Errorf("working directory %s (%v), want %s", cwd, err, s.Dir)
	}
	if !d.confinement.namespaces() {
		t.Logf("no namespaces on this host: %v", d.lost)
		return
	}
	if status["CapBnd"] != "0000000000000000" {
		t.Errorf("bounding set %s", status["CapBnd"])
	}
	for _, ns := range []string{"mnt", "net", "ipc", "uts"} {
		if nsOf(t, "self", ns) == nsOf(t, fmt.Sprint(pid), ns) {
			t.Errorf("it shares our %s namespace", ns)
		}
	}
	checkNetwork(t, pid)
	checkRoot(t, pid, s)
	if d.confinement == confinedAsRoot {
		want := fmt.Sprintf("%d %d %d %d", testUID, testUID, testUID, testUID)
		for _, field := range []string{"Uid", "Gid"} {
			if got := strings.Join(strings.Fields(status[field]), " "); got != want {
				t.Errorf("%s is %s, want %s", field, got, want)
			}
		}
		if status["Groups"] != "" {
			t.Errorf("it has supplementary groups %s", status["Groups"])
		}
	}
}

func procStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	fields := map[string]string{}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

func nsOf(t *testing.T, pid, name string) string {
	t.Helper()
	link, err := os.Readlink("/proc/" + pid + "/ns/" + name)
	must(t, err)
	return link
}

// checkNetwork: nothing but a loopback interface.
func checkNetwork(t *testing.T, pid int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	must(t, err)
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n")[2:] {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), ":"); name != "lo" {
			t.Errorf("it has the network interface %s", name)
		}
	}
}

// checkRoot: the root directory holds what it needs and no more, and cannot be written.
func checkRoot(t *testing.T, pid int, s machine.Spec) {
	t.Helper()
	root := fmt.Sprintf("/proc/%d/root", pid)
	for _, path := range []string{"/root", "/home", "/proc", "/sys", "/var", "/etc/passwd", "/etc/shadow", "/dev/kvm", "/dev/mem", "/run"} {
		if strings.HasPrefix(os.Getenv("VERS_TEST_QEMU_TREES"), path) {
			continue // the QEMU under test lives there
		}
		if _, err := os.Lstat(root + path); !os.IsNotExist(err) {
			t.Errorf("it can see %s (%v)", path, err)
		}
	}
	var siblings []string
	for dir := s.Dir; dir != "/"; dir = filepath.Dir(dir) {
		entries, err := os.ReadDir(root + filepath.Dir(dir))
		must(t, err)
		for _, e := range entries {
			siblings = append(siblings, e.Name())
		}
		if filepath.Dir(dir) == filepath.Dir(filepath.Dir(s.Dir)) {
			break
		}
	}
	for path, writable := range map[string]bool{"/": false, "/usr": false, "/dev": false, s.Dir: true, filepath.Dir(s.Disk[1].Path): true} {
		var st unix.Statfs_t
		must(t, unix.Statfs(root+path, &st))
		if (st.Flags&unix.ST_RDONLY == 0) != writable {
			t.Errorf("%s writable: %v, want %v (seen beside it: %v)", path, !writable, writable, siblings)
		}
		if st.Flags&unix.ST_NOSUID == 0 {
			t.Errorf("%s honours set-user-id programs", path)
		}
	}
}

// TestMemoryUntouchedBeforeLoad: setting up the machine reads nothing of the memory file (and of the guest's RAM).
func TestMemoryUntouchedBeforeLoad(t *testing.T) {
	d := newTestDriver(t, acceleratorTCG)
	s := countingSpec(t, d, 64<<20)
	s.MemoryFile = filepath.Join(filepath.Dir(s.Dir), "flat.ram")
	must(t, os.WriteFile(s.MemoryFile, nil, 0o600))
	must(t, os.Truncate(s.MemoryFile, s.Hardware.MemoryBytes))
	own(t, s, s.MemoryFile)
	i := startFor(t, d, s)
	address, err := i.ramAddress(t.Context())
	must(t, err)
	private, err := memory.PrivateBytes(i.Process().PID, address, s.Hardware.MemoryBytes)
	must(t, err)
	if private != 0 {
		t.Errorf("%d bytes of guest RAM are private before anything was loaded", private)
	}
	if rss := residentBytes(t, i.Process().PID, address); rss != 0 {
		t.Errorf("%d bytes of guest RAM were touched before anything was loaded", rss)
	}
}

// residentBytes reads Rss of the mapping at address.
func residentBytes(t *testing.T, pid int, address uintptr) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	must(t, err)
	_, after, found := strings.Cut(string(data), fmt.Sprintf("%x-", address))
	if !found {
		t.Fatalf("no mapping starts at %#x", address)
	}
	_, after, _ = strings.Cut(after, "\nRss:")
	var kib int
	_, err = fmt.Sscan(after, &kib)
	must(t, err)
	return kib << 10
}

// TestLongDirectory: paths beyond the 108 bytes of a socket address.
func TestLongDirectory(t *testing.T) {
	d := newTestDriver(t, acceleratorTCG)
	s := countingSpec(t, d, 64<<20)
	s.Dir = filepath.Join(filepath.Dir(s.Dir), strings.Repeat("long", 40), strings.Repeat("name", 40))
	must(t, os.MkdirAll(s.Dir, 0o700))
	own(t, s, s.Dir)
	i := startFor(t, d, s)
	must(t, i.Resume(t.Context()))
	for _, name := range []string{"net0.qemu", "net1.qemu", "qmp.sock"} {
		if info, err := os.Lstat(filepath.Join(s.Dir, name)); err != nil || info.Mode()&os.ModeSocket == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStartFails: a start that fails says why and leaves no process.
func TestStartFails(t *testing.T) {
	d := newTestDriver(t, acceleratorTCG)
	for name, c := range map[string]struct {
		change func(*machine.Spec)
		want   string
	}{
		"broken layer": {func(s *machine.Spec) { must(t, os.WriteFile(s.Disk[1].Path, []byte("nonsense"), 0o666)) }, "not in qcow2 format"},
		"no directory": {func(s *machine.Spec) { s.Dir += ".missing" }, "no such file"},
		"odd path":     {func(s *machine.Spec) { s.Kernel = "vmlinuz" }, "not absolute"},
		"no kernel":    {func(s *machine.Spec) { s.Kernel = "/nowhere/vmlinuz" }, "/nowhere/vmlinuz"},
		"no CPU":       {func(s *machine.Spec) { s.Hardware.CPU = "quantum" }, "quantum"},
	} {
		t.Run(name, func(t *testing.T) {
			s := countingSpec(t, d, 64<<20)
			c.change(&s)
			i, err := d.Start(t.Context(), s)
			if err == nil {
				_ = i.Kill(context.Background())
				t.Fatal("it starts")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Fatalf("the error does not say %q: %v", c.want, err)
			}
		})
	}
}
