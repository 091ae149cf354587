package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/session"
	"vers/internal/fault"
)

func TestExitCode(t *testing.T) {
	response := func(status int) error { return &api.ResponseError{Status: status, Message: "id 404 timeout 409"} }
	timeout, cancel := limit(context.Background(), 0, "work")
	defer cancel()
	<-timeout.Done()
	tests := []struct {
		err  error
		want int
	}{
		{nil, 0}, {errors.New("not found 404"), 1}, {&statusError{42}, 42}, {usagef("x"), 5}, {errDeclined, 7},
		{fault.NotFoundf("x"), 3}, {fault.Conflictf("x"), 4}, {fault.Invalidf("x"), 5}, {fault.Exhaustedf("x"), 1},
		{fault.New(fault.Unauthenticated, "x"), 2}, {fault.Forbiddenf("x"), 2}, {fault.New(fault.Timeout, "x"), 6},
		{response(400), 5}, {response(401), 2}, {response(403), 2}, {response(404), 3}, {response(409), 4}, {response(413), 5},
		{response(422), 5}, {response(500), 1}, {response(504), 6},
		{fmt.Errorf("wrapped: %w", rewordf(response(404), "reworded")), 3},
		{errors.Join(errors.New("a"), response(409)), 4},
		{&api.ConnectError{Refused: true, Err: syscall.ECONNREFUSED}, 1},
		{context.Cause(timeout), 6}, {context.DeadlineExceeded, 6}, {context.Canceled, 130},
		{&signalError{syscall.SIGINT}, 130}, {fmt.Errorf("x: %w", &signalError{syscall.SIGTERM}), 143},
		{session.ErrLost, 1},
	}
	for _, test := range tests {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("exitCode(%v) = %d, want %d", test.err, got, test.want)
		}
	}
	if text := context.Cause(timeout).Error(); text != "work timed out after 0s" {
		t.Error(text)
	}
}

func TestImageNameOf(t *testing.T) {
	for source, want := range map[string]string{
		"-": "", "debian": "debian", "debian:12": "debian-12", "debian:latest": "debian", "my.registry:5000/team/app:dev": "app-dev",
		"app@sha256:00": "app", "rootfs.tar": "rootfs", "a/rootfs.tar.gz": "rootfs", "rootfs.tgz": "rootfs", "rootfs.tar.zst": "rootfs", "rootfs.tzst": "rootfs",
	} {
		if got := imageNameOf(source); got != want {
			t.Errorf("%s becomes %q, want %q", source, got, want)
		}
	}
}

func TestCut(t *testing.T) {
	all := []int{1, 2, 3, 4, 5}
	tests := []struct {
		flags pageFlags
		want  []int
		next  int
	}{
		{pageFlags{}, all, 0},
		{pageFlags{limit: 5}, all, 0},
		{pageFlags{limit: 2}, []int{1, 2}, 2},
		{pageFlags{limit: 2, offset: 2}, []int{3, 4}, 4},
		{pageFlags{limit: 2, offset: 3}, []int{4, 5}, 0},
		{pageFlags{offset: 9}, []int{}, 0},
	}
	for _, test := range tests {
		items, forJSON, hint, err := cut(test.flags, all)
		if diff := cmp.Diff(test.want, items); err != nil || diff != "" {
			t.Errorf("%+v: %v %s", test.flags, err, diff)
		}
		envelope, isCut := forJSON.(page[int])
		if isCut != (test.next > 0) || envelope.NextOffset != test.next || (hint != "") != isCut {
			t.Errorf("%+v: %+v, hint %q", test.flags, forJSON, hint)
		}
	}
	if _, _, _, err := cut(pageFlags{limit: -1}, all); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	width := 0
	s := &Streams{Out: &out, Width: func() int { return width }}
	rows := func() [][]string {
		return [][]string{{"a", "1", "ünï \x1b[31mlong\ntext that does not fit"}, {"bbb", "22", ""}}
	}
	s.table([]string{"NAME", "N", "DESCRIPTION"}, rows())
	want := "NAME  N   DESCRIPTION\na     1   ünï [31mlong text that does not fit\nbbb   22\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	out.Reset()
	width = 20
	s.table([]string{"NAME", "N", "DESCRIPTION"}, rows())
	want = "NAME  N   DESCRIPTI…\na     1   ünï [31ml…\nbbb   22\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestQuote(t *testing.T) {
	r := remoteCommand{command: []string{"grep", "it's", "$f", ""}, options: execOptions{workdir: "/a b"}}
	if got, want := r.commandLine(), `cd -- '/a b' || exit 127; exec 'grep' 'it'\''s' '$f' ''`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestHelp holds every command to a description, and to --format where it gives data.
func TestHelp(t *testing.T) {
	app := &App{Streams: &Streams{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}, In: strings.NewReader("")}}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short description %q", cmd.CommandPath(), cmd.Short)
		}
		for _, line := range strings.Split(cmd.Long, "\n") {
			if len(line) > 110 {
				t.Errorf("%s: line too long for a terminal: %q", cmd.CommandPath(), line)
			}
		}
		var help bytes.Buffer
		cmd.SetOut(&help)
		if err := cmd.Help(); err != nil || !strings.Contains(help.String(), "Exit codes:") {
			t.Errorf("%s: help %v", cmd.CommandPath(), err)
		}
		if cmd.Example == "" && cmd.HasParent() {
			t.Errorf("%s: no example", cmd.CommandPath())
		}
		if flags := cmd.Flags(); flags.Lookup("json") != nil && flags.Lookup("quiet") == nil && cmd.Name() != "exec" && cmd.Name() != "tree" && cmd.Name() != "logs" &&
			cmd.Name() != "tunnel" {
			t.Errorf("%s: --json without -q", cmd.CommandPath())
		}
		for _, child := range cmd.Commands() {
			walk(child)
		}
	}
	walk(app.rootCommand())
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	quiet := &Streams{Err: &out}
	quiet.progress("Working")()
	shown := make(chan struct{}, 100)
	loud := &Streams{Err: writerFunc(func(p []byte) (int, error) {
		shown <- struct{}{}
		return out.Write(p)
	}), ErrTTY: true}
	stop := loud.progress("Working on %s", "it")
	select {
	case <-shown:
	case <-time.After(10 * time.Second):
		t.Fatal("no progress on a terminal")
	}
	stop()
	stop() // twice does no harm
	if text := out.String(); !strings.Contains(text, "Working on it") || !strings.HasSuffix(text, "\r\x1b[K") {
		t.Errorf("%q", text)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
