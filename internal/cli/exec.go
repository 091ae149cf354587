package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/ref"
	"vers/internal/cli/session"
	"vers/internal/fault"
)

type execOptions struct {
	args        []string
	timeout     int64 // seconds
	ssh         bool
	workdir     string
	user        string
	interactive bool
	detach      bool
	env         []string
	format      formatFlags
}

func (a *App) execCommand() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use: "exec [flags] [vm|alias] <command> [args...]", Aliases: []string{"execute"}, Short: "Run a command in a VM",
		Long: `Run a command in a VM and end with its exit code. Output comes as it is written.

One argument is a command for HEAD. Of several, the first is the VM if it is an alias or an id; otherwise
all of it is a command for HEAD. A command of one word is a shell script and may hold anything; several
words are run as they are, without a shell.

Flags come before the command. Without -i standard input is empty; with -i it is streamed. There is no
time limit without -t. Ctrl-C and signals are passed on to the command; a second Ctrl-C leaves it. With -d the
command is only started; its id is printed, and 'vers logs --all' shows its output.`,
		Example: `  vers exec uptime
  vers exec dev "cd /root/app && npm ci"
  vers exec dev grep "two words" /etc/motd
  tar c . | vers exec -i dev tar x -C /srv
  vers exec -t 60 -w /srv -e DEBUG=1 dev make test
  vers exec -d dev ./worker`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args = args
			return a.exec(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeVMs,
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags of the remote command need no --
	f.Int64VarP(&o.timeout, "timeout", "t", 0, "end the command after this many seconds, exit code 6 (0 = no limit)")
	f.BoolVar(&o.ssh, "ssh", false, "go over SSH")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working folder in the VM (default: the image's, else the user's home)")
	f.StringVarP(&o.user, "user", "u", "", "user[:group] in the VM (default: the image's, else root)")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "forward standard input")
	f.BoolVarP(&o.detach, "detach", "d", false, "start the command and return")
	f.StringArrayVarP(&o.env, "env", "e", nil, "variable for the command: KEY=VALUE, or KEY to take it from here (repeatable)")
	o.format.addJSON(cmd)
	return cmd
}

// execResult is the JSON output of exec.
type execResult struct {
	ExitCode int    `json:"exit_code"`
	Stdout   string `json:"stdout"`
	Stderr   string `json:"stderr"`
}

func (a *App) exec(ctx context.Context, o execOptions) error {
	mode, err := o.format.mode()
	switch {
	case err != nil:
		return err
	case o.timeout < 0:
		return fault.Invalidf("invalid timeout %d (must not be negative)", o.timeout)
	case o.detach && (o.ssh || o.interactive):
		return fault.Invalidf("--detach is not possible with --ssh and --interactive: their command ends with the connection")
	}
	if o.user != "" && (o.ssh || o.interactive) {
		return fault.Invalidf("--user is not possible with --ssh and --interactive, which go over SSH as root; write: su -s /bin/sh %s -c '<command>'", o.user)
	}
	env, err := a.runEnv(o.env)
	if err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	t, command, err := a.execTarget(ctx, o.args)
	if err != nil {
		return err
	}
	if t.IsHead {
		a.Streams.note("Using current HEAD VM: %s", t.ID)
	}
	r := remoteCommand{client: client, vm: t, command: command, env: env, options: o, signals: true, stdout: a.Streams.Out, stderr: a.Streams.Err}
	if o.detach {
		return t.missing(a.detach(ctx, r, mode))
	}
	var stdout, stderr bytes.Buffer
	if mode == modeJSON {
		r.stdout, r.stderr = &stdout, &stderr
	}
	run := a.execAPI
	if o.ssh || o.interactive {
		run = a.execSSH
	}
	code, err := run(ctx, r)
	if err != nil {
		return t.missing(err)
	}
	if mode == modeJSON {
		result := execResult{code, strings.ToValidUTF8(stdout.String(), "\uFFFD"), strings.ToValidUTF8(stderr.String(), "\uFFFD")}
		if err := printJSON(a.Streams.Out, result); err != nil {
			return err
		}
	}
	if code != 0 {
		return &statusError{code}
	}
	return nil
}

// execTarget tells the VM from the command.
func (a *App) execTarget(ctx context.Context, args []string) (target, []string, error) {
	t, found, err := a.explicitTarget(ctx, args)
	if err != nil {
		return target{}, nil, err
	}
	command := args
	if found {
		command = args[1:]
	} else if t, err = a.head(); err != nil {
		if len(args) > 1 && fault.Is(err, fault.NotFound) {
			err = fault.NotFoundf("%w ('%s' is neither an alias on this machine nor a VM id)", err, args[0])
		}
		return target{}, nil, err
	}
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		return target{}, nil, usagef("no command given")
	}
	return t, command, nil
}

// explicitTarget finds the VM if the first of several arguments names one.
func (a *App) explicitTarget(ctx context.Context, args []string) (target, bool, error) {
	t, known, err := a.localTarget(args[0])
	switch {
	case err != nil:
		return target{}, false, err
	case len(args) == 1 && known && t.Alias != "":
		a.Streams.note("note: '%s' is run as a command on HEAD; for VM '%s' write: vers exec %s <command>", args[0], args[0], args[0])
		return target{}, false, nil
	case len(args) == 1:
		return target{}, false, nil
	case known:
		return t, true, nil
	}
	// Hardly any program is called like the beginning of an id; ask the server only when it could be one.
	if _, ok := ref.Prefix(args[0]); !ok {
		return target{}, false, nil
	}
	t, err = a.target(ctx, args[0])
	if fault.Is(err, fault.NotFound) {
		return target{}, false, nil
	}
	return t, err == nil, err
}

// remoteCommand is what is to be run and where its output goes.
type remoteCommand struct {
	client         *api.Client
	vm             target
	command        []string
	env            map[string]string
	options        execOptions
	execID         string  // chosen if empty
	signals        bool    // of this program are passed on to the command
	stdin          *string // whole input, for the API; nil: none
	stdout, stderr io.Writer
}

// shellRunner runs its argument with bash, or with sh where there is none. A script is passed as an argument, so it
// arrives exactly as it was typed.
const shellRunner = `command -v bash >/dev/null 2>&1 && exec bash -c "$1"; exec sh -c "$1"`

// argv gives the argument vector: a single word is a script, several are run as they are.
func (r remoteCommand) argv() []string {
	if len(r.command) == 1 {
		return []string{"sh", "-c", shellRunner, "vers", r.command[0]}
	}
	return r.command
}

// timeoutGrace is how much longer than the command's limit we wait for the server to end it.
const timeoutGrace = 10 * time.Second

func (r remoteCommand) timedOut() error {
	return rewordf(context.DeadlineExceeded, "the command was ended after %d s (--timeout)", r.options.timeout)
}

// request is the command for the API.
func (r remoteCommand) request(id string) api.ExecRequest {
	req := api.ExecRequest{Command: r.argv(), Env: r.env, Stdin: r.stdin, ExecID: &id}
	if r.options.workdir != "" {
		req.WorkingDir = &r.options.workdir
	}
	if r.options.user != "" {
		req.User = &r.options.user
	}
	if r.options.timeout > 0 {
		req.TimeoutSecs = &r.options.timeout
	}
	return req
}

// detached is the JSON output of exec --detach.
type detached struct {
	VMID   string `json:"vm_id"`
	ExecID string `json:"exec_id"`
}

// detach starts a command and leaves it.
func (a *App) detach(ctx context.Context, r remoteCommand, mode mode) error {
	id := uuid.NewString()
	limited, cancel := limit(ctx, startLimit, "starting the command")
	defer cancel()
	stream, err := r.client.ExecStream(limited, r.vm.ID, r.request(id))
	if err != nil {
		return err
	}
	stream.Close()
	if mode == modeJSON {
		return printJSON(a.Streams.Out, detached{r.vm.ID, id})
	}
	fmt.Fprintln(a.Streams.Out, id)
	return nil
}

func (a *App) execAPI(ctx context.Context, r remoteCommand) (int, error) {
	id := cmp.Or(r.execID, uuid.NewString())
	req := r.request(id)
	start := time.Now()
	limited := ctx
	if r.options.timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeoutCause(ctx, r.duration()+timeoutGrace, r.timedOut())
		defer cancel()
	}
	if r.signals {
		var stop func()
		limited, stop = a.passSignals(limited, r, id)
		defer stop()
	}
	code, err := r.client.Run(limited, r.vm.ID, req, r.stdout, r.stderr, func(text string) { a.Streams.note("%s", text) })
	if err == nil && code == 124 && r.options.timeout > 0 && time.Since(start) >= r.duration() {
		return 0, r.timedOut()
	}
	return code, err
}

// passSignals gives a context that does not end with a signal to this program: that is passed on to the command, whose end
// is awaited. A second one ends this program.
func (a *App) passSignals(ctx context.Context, r remoteCommand, id string) (context.Context, func()) {
	inner, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		var signalled *signalError
		if !errors.As(context.Cause(ctx), &signalled) || signalled.Signal() == "" {
			end(context.Cause(ctx))
			return
		}
		if err := a.passSignal(inner, r, id, signalled); err != nil {
			a.Streams.note("The command goes on in VM '%s': %v", r.vm.ID, err)
			end(signalled)
		} else if a.Streams.ErrTTY {
			a.Streams.note("\nThe command was told; press Ctrl-C again to leave it.")
		}
	})
	return inner, func() {
		stop()
		end(nil)
	}
}

// passLimit is how long a signal may take to arrive, also at a command that is just being started.
const passLimit = 5 * time.Second

func (a *App) passSignal(ctx context.Context, r remoteCommand, id string, signalled *signalError) error {
	ctx, cancel := limit(ctx, passLimit, "passing the signal on")
	defer cancel()
	for {
		err := r.client.SignalExec(ctx, r.vm.ID, api.SignalRequest{ExecID: id, Signal: signalled.Signal()})
		switch {
		case api.StatusOf(err) == http.StatusConflict: // it has ended, which will arrive
			return nil
		case !api.IsNotFound(err):
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (r remoteCommand) duration() time.Duration {
	return time.Duration(r.options.timeout) * time.Second
}

func (a *App) execSSH(ctx context.Context, r remoteCommand) (int, error) {
	conn, err := session.DialKept(ctx, r.client, r.vm.ID)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if r.options.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.duration(), r.timedOut())
		defer cancel()
	}
	var in io.Reader
	if r.options.interactive {
		in = a.Streams.In
	}
	return session.Exec(ctx, conn, r.commandLine(), in, r.stdout, r.stderr)
}

// commandLine gives the command as one line for the login shell, since SSH knows no argument vector.
func (r remoteCommand) commandLine() string {
	var line strings.Builder
	if r.options.workdir != "" {
		fmt.Fprintf(&line, "cd -- %s || exit 127; ", quote(r.options.workdir))
	}
	for key, value := range r.env {
		fmt.Fprintf(&line, "export %s=%s; ", key, quote(value))
	}
	line.WriteString("exec")
	for _, word := range r.argv() {
		line.WriteString(" " + quote(word))
	}
	return line.String()
}

// quote makes one word of text for a POSIX shell.
func quote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
