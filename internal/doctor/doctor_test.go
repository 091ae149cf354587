package doctor

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func find(t *testing.T, checks []Check, name string) Check {
	t.Helper()
	for _, c := range checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check named %q", name)
	return Check{}
}

// The host that runs the tests runs VMs too, so everything required must be there and be seen.
func TestThisHost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "made", "yet")
	checks := Run(t.Context(), Options{DataDir: dir, Accelerator: "tcg, for a reason"})
	var out bytes.Buffer
	if err := Print(&out, checks, false); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", &out)
	if !Healthy(checks) {
		t.Error("a required check fails on a host whose tests run VMs")
	}
	for _, c := range checks {
		if c.Detail == "" {
			t.Errorf("%s says nothing", c.Name)
		}
		if !c.OK && c.Level == Required && c.Fix == "" {
			t.Errorf("%s is required, fails, and does not say what to do", c.Name)
		}
	}
	if got := find(t, checks, acceleratorName); !got.OK || got.Detail != "tcg, for a reason" {
		t.Errorf("the accelerator's proof is not passed on: %+v", got)
	}
	entries, err := os.ReadDir(filepath.Dir(filepath.Dir(filepath.Dir(dir))))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestNoQEMU(t *testing.T) {
	checks := Run(t.Context(), Options{DataDir: t.TempDir(), QEMU: "/nowhere/qemu-system-x86_64"})
	c := find(t, checks, "QEMU")
	if c.OK || c.Fix == "" || !strings.Contains(c.Detail, "/nowhere/qemu-system-x86_64") {
		t.Errorf("%+v", c)
	}
	if Healthy(checks) {
		t.Error("healthy without QEMU")
	}
}

// A program that starts but is no QEMU, or one without what we need, must not pass for one.
func TestProgramThatIsNoQEMU(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho 'QEMU emulator version 9.9.9'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if c := find(t, Run(t.Context(), Options{DataDir: t.TempDir(), QEMU: path}), "QEMU"); c.OK {
		t.Errorf("accepted: %+v", c)
	}
}

func TestMissingTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	checks := tools(t.TempDir())
	c := find(t, checks, "mmdebstrap")
	if c.OK || c.Level != Required || c.Fix != "apt-get install mmdebstrap" {
		t.Errorf("%+v", c)
	}
}

func TestPrint(t *testing.T) {
	checks := []Check{
		{Name: "good", OK: true, Level: Required, Detail: "there"},
		{Name: "bad", Level: Required, Detail: "not there", Fix: "apt-get install bad"},
		{Name: "slow", Level: Recommended, Detail: "could be faster"},
		{Name: "odd", Level: Info, Detail: "by the way"},
		{Name: acceleratorName, OK: true, Level: Info, Detail: "kvm, a guest booted"},
	}
	for name, tt := range map[string]struct {
		checks []Check
		brief  bool
		want   string
	}{
		"all": {checks, false, "" +
			"ok    good         there\n" +
			"FAIL  bad          not there\n" +
			"                   mend: apt-get install bad\n" +
			"warn  slow         could be faster\n" +
			"note  odd          by the way\n" +
			"ok    accelerator  kvm, a guest booted\n" +
			"VMs cannot run here yet: 1 required thing is missing (FAIL).\n"},
		"brief": {checks, true, "" +
			"FAIL  bad          not there\n" +
			"                   mend: apt-get install bad\n" +
			"warn  slow         could be faster\n" +
			"ok    accelerator  kvm, a guest booted\n" +
			"VMs cannot run here yet: 1 required thing is missing (FAIL).\n"},
		"only warnings": {checks[2:3], true, "warn  slow  could be faster\nVMs can run here. 1 thing could be better (warn).\n"},
		"all well":      {checks[:1], true, "VMs can run here. Nothing is missing.\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Print(&out, tt.checks, tt.brief); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDescribeSystem(t *testing.T) {
	for name, tt := range map[string]struct {
		file string
		ok   bool
	}{
		"Debian 12": {"PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n", true},
		"Debian 13": {"ID=debian\nVERSION_ID=\"13\"\n", true},
		"Debian 11": {"ID=debian\nVERSION_ID=\"11\"\n", false},
		"Ubuntu":    {"ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n", false},
		"nothing":   {"", false},
	} {
		if got := describeSystem(tt.file); got.OK != tt.ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestReadAnotherUsersMemory(t *testing.T) {
	c, err := startChild(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.read(); err != nil {
		t.Errorf("read a process of our own: %v", err)
	}
	c.end()
	if err := c.read(); err == nil {
		t.Error("a process that is gone was read")
	}
}

// Where files cannot share blocks the check must say so, not claim it. tmpfs never can.
func TestSharedBlocksOnTmpfs(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "vers-doctor-")
	if err != nil {
		t.Skipf("no tmpfs here: %v", err)
	}
	defer os.RemoveAll(dir)
	if out, err := exec.CommandContext(t.Context(), "stat", "-f", "-c", "%T", dir).Output(); err != nil || strings.TrimSpace(string(out)) != "tmpfs" {
		t.Skipf("/dev/shm is no tmpfs: %s %v", out, err)
	}
	if c := sharedBlocks(dir); c.OK {
		t.Errorf("tmpfs shares blocks: %+v", c)
	}
}

// Nothing is claimed about a confinement that nobody has looked at.
func TestConfinement(t *testing.T) {
	for name, tt := range map[string]struct {
		lost   []string
		listed bool
		ok     bool
	}{
		"not known": {nil, false, false},
		"whole":     {[]string{}, true, true},
		"partly":    {[]string{"no own user"}, true, false},
	} {
		var got []Check
		for _, c := range Run(t.Context(), Options{DataDir: t.TempDir(), Unconfined: tt.lost}) {
			if c.Name == "confinement" {
				got = append(got, c)
			}
		}
		if listed := len(got) == 1; listed != tt.listed || listed && got[0].OK != tt.ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestContainerEngine(t *testing.T) {
	for name, test := range map[string]struct {
		options Options
		ok      bool
		detail  string
		fix     string
	}{
		"fine":    {Options{Engine: "embedded (buildah 1, runc 1)"}, true, "embedded (buildah 1, runc 1)", ""},
		"gaps":    {Options{Engine: "embedded", EngineNotes: []string{"No limits."}}, false, "embedded: No limits.", ""},
		"no runc": {Options{EngineErr: errors.New("runc is not installed")}, false, "no Dockerfile can be built: runc is not installed", "apt-get install runc"},
	} {
		got := containerEngine(test.options)
		if got.OK != test.ok || got.Detail != test.detail || got.Fix != test.fix || got.Level != Recommended {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
