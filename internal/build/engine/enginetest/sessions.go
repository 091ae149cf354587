package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

func archiveOf(t *testing.T, files map[string]string) *bytes.Buffer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o750, Uid: 1000, Gid: 50, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(content))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func (s *suite) session(t *testing.T) {
	image, _ := s.build(t, "FROM "+baseName+"\nENV FROM_IMAGE=1 BOTH=image\nWORKDIR /work\nUSER user\n", nil)
	c, err := s.Engine.Start(soon(t), engine.Container{
		Image: image, Env: map[string]string{"FROM_CONTAINER": "2", "BOTH": "container"}, Hostname: "builder", Network: s.quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.CopyIn(soon(t), archiveOf(t, map[string]string{"opt/tool": "#!/bin/sh\necho tool $1\n"})); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name           string
		command        engine.Command
		code           int
		stdout, stderr string
	}{
		{"image's", engine.Command{Args: []string{"sh", "-c", "echo $FROM_IMAGE $FROM_CONTAINER $BOTH $BASE; pwd; id -un; hostname"}}, 0, "1 2 container yes\n/work\nuser\nbuilder\n", ""},
		{"own", engine.Command{Args: []string{"sh", "-c", "echo $BOTH; pwd; id -u; id -g; echo no >&2; exit 3"}, Env: map[string]string{"BOTH": "command"}, Dir: "/tmp", User: "0:staff"}, 3, "command\n/tmp\n0\n50\n", "no\n"},
		{"numbers", engine.Command{Args: []string{"sh", "-c", "id -u; id -g; echo $HOME"}, User: "1000"}, 0, "1000\n1000\n/home/user\n", ""},
		{"signal", engine.Command{Args: []string{"sh", "-c", "kill -9 $$"}}, 137, "", ""},
		{"copied", engine.Command{Args: []string{"/opt/tool", "x"}}, 0, "tool x\n", ""},
		{"keeps", engine.Command{Args: []string{"sh", "-c", "echo kept > /kept; (while :; do sleep 1; done) >/dev/null 2>&1 &"}, User: "root"}, 0, "", ""},
		{"goes on", engine.Command{Args: []string{"sh", "-c", "cat /kept; ps -o args | grep -c 'whil[e] :; do sleep'"}, User: "root"}, 0, "kept\n1\n", ""},
	} {
		var stdout, stderr bytes.Buffer
		test.command.Stdout, test.command.Stderr = &stdout, &stderr
		code, err := c.Exec(soon(t), test.command)
		if err != nil || code != test.code || stdout.String() != test.stdout || stderr.String() != test.stderr {
			t.Errorf("%s: %d %v\n%s%s", test.name, code, err, &stdout, &stderr)
		}
	}
	if code, err := c.Exec(soon(t), engine.Command{Args: []string{"no-such-program"}}); err != nil || code != 127 {
		t.Errorf("no such program: %d %v", code, err)
	}
	if _, err := c.Exec(soon(t), engine.Command{Args: []string{"true"}, User: "nobody-here"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no such user: %v", err)
	}
	var out bytes.Buffer
	if err := c.Export(soon(t), &out); err != nil {
		t.Fatal(err)
	}
	tree := readTree(t, &out)
	expect(t, tree, "/kept", "kept\n")
	if h := tree["/opt/tool"].header; h == nil || h.Uid != 1000 || h.Gid != 50 || h.Mode&0o7777 != 0o750 {
		t.Errorf("/opt/tool: %+v", h)
	}
	for path := range tree {
		if strings.HasPrefix(path, "/dev/") && !slices.Contains([]string{"/dev/console", "/dev/pts", "/dev/shm"}, path) || // Docker's
			strings.HasPrefix(path, "/proc/") || strings.HasPrefix(path, "/sys/") {
			t.Errorf("%s is in the archive", path)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if _, err := c.Exec(soon(t), engine.Command{Args: []string{"true"}}); err == nil {
		t.Error("a command ran in a closed container")
	}
}

func (s *suite) quiet() engine.Network {
	if s.capabilities.NoNetwork {
		return engine.NetworkNone
	}
	return engine.NetworkDefault
}

// sessionEnds: commands end at their limits, the container lives on; it ends with Close, whatever runs.
func (s *suite) sessionEnds(t *testing.T) {
	c, err := s.Engine.Start(soon(t), engine.Container{Image: s.base, Network: s.quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	slow := engine.Command{Args: []string{"sh", "-c", "(setsid sleep 1000 &); sleep 1000"}}
	limited := slow
	limited.Timeout = time.Second
	if _, err := c.Exec(soon(t), limited); !fault.Is(err, fault.Timeout) {
		t.Errorf("a time limit: %v", err)
	}
	ctx, cancel := context.WithCancel(soon(t))
	log := newUntil("started")
	slow.Args[2], slow.Stdout = "echo started; "+slow.Args[2], log
	go func() { <-log.seen; cancel() }()
	if _, err := c.Exec(ctx, slow); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	var out bytes.Buffer
	if code, err := c.Exec(soon(t), engine.Command{Args: []string{"sh", "-c", "ps -o args | grep 'slee[p] 1000'; true"}, Stdout: &out, Stderr: &out}); err != nil || code != 0 || out.String() != "" {
		t.Errorf("what runs after that: %d %v %q", code, err, &out)
	}
	if _, err := c.Exec(soon(t), engine.Command{Args: []string{"sh", "-c", "sleep 1000 >/dev/null 2>&1 &"}}); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
