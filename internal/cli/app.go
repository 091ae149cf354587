// Package cli is the vers command line: one file per command, each with an options struct and a run method, so that
// commands are tested without a process (spec/cli.md).
package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/joho/godotenv"
	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/local"
	"vers/internal/config"
	"vers/internal/fault"
)

// Where a server of this machine is found when nothing else is said.
const (
	defaultSocket = "/run/vers/versd.sock"
	defaultURL    = "http://127.0.0.1:7878"
)

// App is one call of the program. Everything it takes from its surroundings is here.
type App struct {
	Streams *Streams
	Dir     string                      // working folder
	Home    string                      // home folder
	Env     func(string) (string, bool) // environment variables
	Build   Build
	Socket  string // default server socket, used if it is there

	// global flags
	verbose    bool
	url        string
	configFile string

	quietProject    bool // what there is to say about vers.toml was said
	dotenv          map[string]string
	client          *api.Client
	reconnectDelays []time.Duration // of connect; nil: the usual ones
	pause           time.Duration   // between questions for an approval; 0: the usual one
}

// Build says which build this is; cmd/vers fills it in.
type Build struct{ Version, Commit, Date string }

// New makes an App for this process.
func New(build Build) (*App, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find the working folder: %w", err)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, fmt.Errorf("find the home folder: %w", err)
	}
	return &App{Streams: SystemStreams(), Dir: dir, Home: home, Env: os.LookupEnv, Build: build, Socket: defaultSocket}, nil
}

// Main runs the program with args, without the program's own name, and returns its exit code. SIGINT, SIGTERM and
// SIGHUP end the work under way and restore the terminal; a second one ends the process at once.
func (a *App) Main(args []string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(&signalError{s})
		case <-ctx.Done():
		}
	}()
	return a.Run(ctx, args)
}

// Run is Main without the signals.
func (a *App) Run(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if a.client != nil {
		a.client.CloseIdle()
	}
	return a.report(cmd, err)
}

// report writes what went wrong and gives the exit code.
func (a *App) report(cmd *cobra.Command, err error) int {
	code := exitCode(err)
	var status *statusError
	var signalled *signalError
	var usage *usageError
	switch {
	case err == nil, errors.As(err, &status), errors.Is(err, syscall.EPIPE):
		return code
	case errors.As(err, &signalled):
		if a.Streams.ErrTTY {
			fmt.Fprintln(a.Streams.Err)
		}
		return code
	case errors.Is(err, errDeclined):
		a.Streams.note("%v", err)
		return code
	}
	a.printError(err)
	if errors.As(err, &usage) && cmd != nil {
		a.Streams.note("Usage: %s\nMore:  %s --help", cmd.UseLine(), cmd.CommandPath())
	}
	return code
}

// printError writes one failure and, where there is a standing remedy, how to mend it.
func (a *App) printError(err error) {
	a.Streams.note("Error: %s", a.explain(err))
	if advice := a.advice(err); advice != "" {
		a.Streams.note("%s", advice)
	}
}

// warn writes a warning.
func (a *App) warn(format string, args ...any) { a.Streams.note("Warning: "+format, args...) }

// debug writes a line when --verbose or VERS_VERBOSE is set.
func (a *App) debug(line string) {
	if a.verbose || a.env("VERS_VERBOSE") == "true" || a.env("VERS_DEBUG") == "true" {
		a.Streams.note("debug: %s", line)
	}
}

// env gives a variable from the environment or, if it is unset or empty there, from .env in the working folder.
func (a *App) env(name string) string {
	if value, _ := a.Env(name); value != "" {
		return value
	}
	return a.dotenv[name]
}

// loadDotEnv reads .env. One that cannot be read is worth a warning, not a failure: it belongs to the user's project.
func (a *App) loadDotEnv() {
	path := filepath.Join(a.Dir, ".env")
	if _, err := os.Stat(path); err != nil {
		return
	}
	vars, err := godotenv.Read(path)
	if err != nil {
		a.warn(".env is ignored: %v", err)
		return
	}
	a.dotenv = vars
}

func (a *App) folder() local.Folder   { return local.Folder{Dir: a.Dir} }
func (a *App) aliases() local.Aliases { return local.Aliases{Home: a.Home} }

// project reads vers.toml. With warnMissing the absence of any file is told, as the commands that use it must.
func (a *App) project(warnMissing bool) (config.Project, error) {
	explicit := a.configFile
	if explicit == "" {
		explicit = a.env("VERS_CONFIG")
	}
	project, err := config.LoadProject(a.Dir, a.Home, explicit)
	if err != nil {
		return project, err
	}
	if a.quietProject {
		return project, nil
	}
	if project.File == "" && warnMissing {
		a.Streams.note("Warning: vers.toml not found, using default configuration")
	}
	for _, warning := range project.Warnings {
		a.warn("%s", warning)
	}
	return project, nil
}

// key finds the API key and where it came from.
func (a *App) key() (key, source string, err error) {
	for _, name := range []string{"VERS_API_KEY", "VERS_TOKEN"} {
		if value := strings.TrimSpace(a.env(name)); value != "" {
			return value, name, nil
		}
	}
	stored, err := local.LoadCredentials(a.Home)
	if err != nil || stored.APIKey == "" {
		return "", "", err
	}
	return stored.APIKey, "~/.versrc", nil
}

// address finds the server's address and says which setting it came from.
func (a *App) address() (address, source string, err error) {
	address, source = a.url, "--url"
	for _, name := range []string{"VERS_URL", "VERS_BASE_URL"} {
		if address == "" {
			address, source = a.env(name), name
		}
	}
	if address == "" {
		stored, err := local.LoadCredentials(a.Home)
		if err != nil {
			return "", "", err
		}
		address, source = stored.URL, "~/.versrc"
	}
	if address == "" {
		if a.Socket != "" && usableSocket(a.Socket) {
			return "unix://" + a.Socket, "default", nil
		}
		return defaultURL, "default", nil
	}
	if !strings.HasPrefix(address, "http://") && !strings.HasPrefix(address, "https://") && !strings.HasPrefix(address, "unix:///") {
		return "", "", fault.Invalidf("%s is %q, but must start with http:// or https:// (or unix:/// and a socket's path)", source, address)
	}
	return strings.TrimSuffix(strings.TrimRight(address, "/"), "/api/v1"), source, nil
}

// usableSocket reports whether a socket is there and not closed to us; one that nobody serves counts, so that the
// error names it.
func usableSocket(path string) bool {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return true
	}
	return !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission)
}

// api gives the client, made on first use. Without a key it fails before anything is sent, except for the server's
// own socket, which needs none.
func (a *App) api() (*api.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	key, source, err := a.key()
	if err != nil {
		return nil, err
	}
	address, addressSource, err := a.address()
	if err != nil {
		return nil, err
	}
	if key == "" && !strings.HasPrefix(address, "unix:") {
		if addressSource == "default" {
			if err := a.probe(address); err != nil {
				return nil, err // without a server, a key is not what is missing
			}
		}
		return nil, fault.New(fault.Unauthenticated, "authentication required: no API key for the server at %s", address)
	}
	a.debug(fmt.Sprintf("server %s (from %s), key from %s", address, addressSource, source))
	client, err := a.newClient(address, key)
	if err != nil {
		return nil, err
	}
	a.client = client
	return client, nil
}

// probe reports whether anybody listens at the address.
func (a *App) probe(address string) error {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(address, "http://"), time.Second)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Err != nil {
			err = op.Err
		}
		return &api.ConnectError{Address: address, Refused: true, Err: err}
	}
	return conn.Close()
}

func (a *App) newClient(address, key string) (*api.Client, error) {
	client, err := api.NewClient(address,
		api.WithKey(key),
		api.WithUserAgent(fmt.Sprintf("vers/%s (%s/%s)", a.Build.Version, runtime.GOOS, runtime.GOARCH)),
		api.WithHostHeader(a.env("VERS_HOST_HEADER")),
		api.WithTrace(a.debug))
	if err != nil {
		return nil, fault.Invalidf("%w", err)
	}
	return client, nil
}

// Time limits of requests (spec/cli.md 2.7).
const (
	checkLimit  = 10 * time.Second
	listLimit   = 30 * time.Second
	startLimit  = 60 * time.Second
	commitLimit = 10 * time.Minute
)

// limit bounds ctx with an error that says what took too long.
func limit(ctx context.Context, d time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, rewordf(context.DeadlineExceeded, "%s timed out after %v", what, d))
}
