package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/cli/session"
	"vers/internal/cli/transfer"
	"vers/internal/fault"
)

type copyOptions struct {
	args      []string
	recursive bool
	timeout   int64 // seconds
	format    formatFlags
}

func (a *App) copyCommand() *cobra.Command {
	var o copyOptions
	cmd := &cobra.Command{
		Use: "copy [vm|alias] <source> <destination>", Aliases: []string{"cp"}, Short: "Copy files into a VM, or out of it",
		Long: `Copy a file, or with -r a folder, between this machine and a VM (default: HEAD). A leading ':' marks the path
in the VM, or the VM's name and ':' as with scp; relative ones begin at root's home. Without a ':', the path
that begins with a slash is the one in the VM; if that decides nothing, it is an upload if the source is on
this machine, else a download. '-' is standard input or output.

A destination that is a folder, or ends in a slash, gets the source under its own name; 'folder/.' stands for
what is in a folder. Folders on the way are made. Modes and times are kept, links stay links; set-user-ID is
not kept on this machine. What is replaced in the VM keeps its owner, what is new there belongs to root.

Every file appears whole: it is written under another name and renamed. After an interruption the same command
goes on with files of 8 MiB and more where they stopped, once what is there was compared; such files that are
there already are not copied again. A lost connection is made again by itself. What cannot be copied is told,
the rest is copied, and the exit code is that of the first failure. Nothing is written outside of a local
destination, whatever links are in it. A paused VM is resumed.`,
		Example: `  vers copy dev app.tar.gz :/srv/
  vers copy dev:/var/log/app.log .
  vers copy -r dev ./site :/var/www/site
  pg_dump shop | vers copy dev - :/root/shop.sql
  vers copy :/etc/os-release - | grep VERSION`,
		Args: arguments(cobra.RangeArgs(2, 3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args = args
			return a.copy(cmd.Context(), o)
		},
		ValidArgsFunction: a.completeVMsAndFiles,
	}
	cmd.Flags().BoolVarP(&o.recursive, "recursive", "r", false, "copy folders with all that is in them")
	cmd.Flags().Int64VarP(&o.timeout, "timeout", "t", 0, "give up after this many seconds, exit code 6 (0 = no limit)")
	o.format.addQuiet(cmd, "print nothing")
	return cmd
}

// route is what is copied where.
type route struct {
	upload       bool
	local        string // "-": standard input or output
	remote       string
	shown, typed string // the local path as typed, and the remote one
}

// copyResult is the JSON output of copy.
type copyResult struct {
	VMID        string       `json:"vm_id"`
	Direction   string       `json:"direction" jsonschema:"upload or download"`
	Source      string       `json:"source"`
	Destination string       `json:"destination"`
	Files       int64        `json:"files"`
	Folders     int64        `json:"folders"`
	Links       int64        `json:"links"`
	Unchanged   int64        `json:"unchanged" jsonschema:"files of these that were there already"`
	Bytes       int64        `json:"bytes" jsonschema:"sent or received"`
	KeptBytes   int64        `json:"kept_bytes" jsonschema:"were there already, from an interrupted copy or in unchanged files"`
	Seconds     float64      `json:"seconds"`
	Failed      []copyFailed `json:"failed"`
}

type copyFailed struct {
	Path  string `json:"path"`
	Error string `json:"error"`
}

func (a *App) copy(ctx context.Context, o copyOptions) error {
	mode, err := o.format.mode()
	switch {
	case err != nil:
		return err
	case o.timeout < 0:
		return fault.Invalidf("invalid timeout %d (must not be negative)", o.timeout)
	}
	vm, from, to := a.splitCopy(o.args)
	r, err := a.route(from, to)
	if err != nil {
		return err
	}
	if r.upload && r.local != "-" { // before anything is asked of the server
		if err := checkSource(r, o.recursive); err != nil {
			return err
		}
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	t, err := a.target(ctx, vm)
	if err != nil {
		return err
	}
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(o.timeout)*time.Second,
			rewordf(context.DeadlineExceeded, "the copy was given up after %d s (--timeout)", o.timeout))
		defer cancel()
	}
	if t.IsHead {
		a.Streams.note("Using current HEAD VM: %s", t.ID)
	}
	if err := a.wake(ctx, client, t); err != nil {
		return err
	}
	text := mode == modeText && (r.upload || r.local != "-")
	if text {
		fmt.Fprintln(a.Streams.Out, r.direction(t))
	}
	c := copying{app: a, client: client, vm: t, route: r, recursive: o.recursive}
	result, err := c.run(ctx)
	switch {
	case mode == modeJSON && (r.upload || r.local != "-"):
		if printErr := printJSON(a.Streams.Out, result); printErr != nil {
			return printErr
		}
	case text && err == nil:
		fmt.Fprintln(a.Streams.Out, result.summary())
	}
	if len(result.Failed) > 0 && result.Files+result.Links+result.Folders+int64(len(result.Failed)) > 1 {
		return &withMessage{message: fmt.Sprintf("%s could not be copied", count(int64(len(result.Failed)), "entry", "entries")), err: err}
	}
	return t.missing(err)
}

// splitCopy takes the VM and the paths from two or three arguments. Of two, one may be "vm:path", unless a file of this machine
// is called so.
func (a *App) splitCopy(args []string) (vm, from, to string) {
	if len(args) == 3 {
		return args[0], args[1], args[2]
	}
	paths := slices.Clone(args)
	for i, typed := range paths {
		name, path, found := strings.Cut(typed, ":")
		if !found || name == "" || strings.ContainsAny(name, `/\`) || vm != "" && name != vm || filepath.VolumeName(typed) != "" {
			continue
		}
		if _, err := os.Lstat(a.localPath(typed)); err != nil {
			vm, paths[i] = name, ":"+path
		}
	}
	return vm, paths[0], paths[1]
}

// route decides which of two paths is the VM's (spec/cli.md 9.3).
func (a *App) route(from, to string) (route, error) {
	source, fromVM := strings.CutPrefix(from, ":")
	dest, toVM := strings.CutPrefix(to, ":")
	switch {
	case from == "" || to == "":
		return route{}, usagef("a path is empty; '.' is the folder you are in, ':' root's home in the VM")
	case fromVM && toVM:
		return route{}, fault.Invalidf("both paths are in the VM; use: vers exec cp %s %s", source, dest)
	case from == "-" && to == "-":
		return route{}, usagef("one of the paths must be in the VM")
	case fromVM || to == "-":
		return a.download(source, to), nil
	case toVM || from == "-":
		return a.uploadTo(from, dest), nil
	}
	switch fromSlash, toSlash := strings.HasPrefix(from, "/"), strings.HasPrefix(to, "/"); {
	case toSlash && !fromSlash:
		return a.uploadTo(from, to), nil
	case fromSlash && !toSlash:
		return a.download(from, to), nil
	}
	if _, err := os.Lstat(a.localPath(from)); err == nil {
		return a.uploadTo(from, to), nil
	}
	return a.download(from, to), nil
}

func (a *App) uploadTo(from, to string) route {
	return route{upload: true, local: a.localPath(from), remote: to, shown: from, typed: to}
}

func (a *App) download(from, to string) route {
	return route{local: a.localPath(to), remote: from, shown: to, typed: from}
}

// localPath expands ~ and takes relative paths from the working folder. A slash, or slash and dot, at the end stays, as
// it has a meaning.
func (a *App) localPath(typed string) string {
	switch {
	case typed == "-":
		return typed
	case typed == "~":
		typed = a.Home
	case strings.HasPrefix(typed, "~/"):
		typed = a.Home + typed[1:]
	}
	if !filepath.IsAbs(typed) {
		return a.Dir + string(filepath.Separator) + typed
	}
	return typed
}

func checkSource(r route, recursive bool) error {
	info, err := os.Stat(r.local)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fault.NotFoundf("'%s' is not on this machine (a path in the VM begins with ':')", r.shown)
	case err != nil:
		return err
	case info.IsDir() && !recursive:
		return fault.Invalidf("'%s' is a folder; copy folders with -r", r.shown)
	}
	return nil
}

func (r route) direction(t target) string {
	if r.upload {
		return fmt.Sprintf("Copying %s to VM %s: %s", clean(r.shown), t.describe(), clean(r.typed))
	}
	return fmt.Sprintf("Copying %s of VM %s to %s", clean(r.typed), t.describe(), clean(r.shown))
}

// copying is one copy, over as many connections as it takes.
type copying struct {
	app       *App
	client    *api.Client
	vm        target
	route     route
	recursive bool
	failed    []copyFailed
}

func (c *copying) run(ctx context.Context) (copyResult, error) {
	began := time.Now()
	delays := c.app.reconnectDelays
	if delays == nil {
		delays = session.ReconnectDelays
	}
	var result copyResult
	for attempt := 0; ; attempt++ {
		moved, err := c.once(ctx, &result, attempt > 0)
		result.Seconds = time.Since(began).Seconds()
		if !errors.Is(err, session.ErrLost) || c.route.local == "-" || attempt >= len(delays) || ctx.Err() != nil {
			return result, err
		}
		if moved {
			attempt = 0
		}
		c.app.Streams.note("%v; connecting again in %v (attempt %d of %d)", err, delays[attempt], attempt+1, len(delays))
		select {
		case <-ctx.Done():
			return result, context.Cause(ctx)
		case <-time.After(delays[attempt]):
		}
	}
}

// once copies over one connection, and says whether that moved anything. A server that cannot be reached again, because it
// restarts, is a lost connection.
func (c *copying) once(ctx context.Context, result *copyResult, again bool) (moved bool, err error) {
	// The connection outlives ctx: unfinished files are to be removed from the VM.
	conn, err := session.DialKept(ctx, c.client, c.vm.ID)
	if err != nil {
		var away *api.ConnectError
		if again && errors.As(err, &away) {
			err = fmt.Errorf("%w: %w", session.ErrLost, err)
		}
		return false, err
	}
	defer conn.Close()
	inner, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	go func() {
		_ = conn.Wait()
		lost(session.ErrLost)
	}()
	ended := make(chan struct{})
	defer close(ended)
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-ended:
		case <-time.After(cleaningLimit):
			conn.Close()
		}
	})
	defer stop()
	copier, err := transfer.New(conn)
	if err != nil {
		if inner.Err() != nil {
			err = context.Cause(inner)
		}
		return false, err
	}
	defer copier.Close()
	c.failed = nil
	copier.Recursive = c.recursive
	copier.Contents = contents{c.client, c.vm.ID}
	copier.Failed = func(path string, err error) {
		c.failed = append(c.failed, copyFailed{path, err.Error()})
		c.app.Streams.note("Error: %s: %v", clean(path), err)
	}
	shown := c.app.Streams.progressOf(c.progress(&copier.Counts))
	err = c.move(inner, copier)
	shown()
	if inner.Err() != nil {
		err = context.Cause(inner)
	}
	c.tell(result, &copier.Counts)
	return copier.Counts.Bytes.Load() > 0, err
}

// contents takes the bytes of large files past SSH, whose encryption costs more in a guest than all else.
type contents struct {
	client *api.Client
	vmID   string
}

// Open implements transfer.Contents.
func (c contents) Open(ctx context.Context, path string, offset int64) (io.ReadCloser, error) {
	content, err := c.client.OpenContent(ctx, c.vmID, path, offset)
	if err != nil {
		return nil, sameFate(ctx, err)
	}
	return reading{content, ctx}, nil
}

// Write implements transfer.Contents.
func (c contents) Write(ctx context.Context, path string, offset int64, r io.Reader) error {
	return sameFate(ctx, c.client.WriteContent(ctx, c.vmID, path, api.ContentOptions{InPlace: true, Offset: offset}, r))
}

// reading is content whose reading may break.
type reading struct {
	io.ReadCloser
	ctx context.Context
}

// Read implements io.Reader.
func (r reading) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = sameFate(r.ctx, err)
	}
	return n, err
}

// sameFateLimit is how long the end of the SSH connection may be heard after that of a call at the same server.
const sameFateLimit = time.Second

// sameFate explains a call that broke because the server went away: the connection that ctx stands for ends with it, a moment
// sooner or later, and that is what is to be told.
func sameFate(ctx context.Context, err error) error {
	if err == nil || api.StatusOf(err) != 0 {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(sameFateLimit):
		return err
	}
}

// cleaningLimit is how long unfinished files may be tidied up after an interruption.
const cleaningLimit = 3 * time.Second

func (c *copying) move(ctx context.Context, copier *transfer.Copier) error {
	r := c.route
	switch {
	case r.upload && r.local == "-":
		return copier.UploadStream(ctx, c.app.Streams.In, r.remote)
	case r.local == "-":
		return copier.DownloadStream(ctx, r.remote, c.app.Streams.Out)
	case r.upload:
		return copier.Upload(ctx, r.local, r.remote)
	}
	return copier.Download(ctx, r.remote, r.local)
}

// tell writes down how far the copy is. Bytes of lost connections add up.
func (c *copying) tell(result *copyResult, counts *transfer.Counts) {
	result.VMID, result.Failed = c.vm.ID, c.failed
	if result.Failed == nil {
		result.Failed = []copyFailed{}
	}
	result.Direction, result.Source, result.Destination = "download", c.route.typed, c.route.shown
	if c.route.upload {
		result.Direction, result.Source, result.Destination = "upload", c.route.shown, c.route.typed
	}
	result.Files, result.Folders, result.Links = counts.Files.Load(), counts.Folders.Load(), counts.Links.Load()
	result.Unchanged, result.KeptBytes = counts.Unchanged.Load(), counts.Kept.Load()
	result.Bytes += counts.Bytes.Load()
}

// progress gives what is shown on a terminal while a copy is under way.
func (c *copying) progress(counts *transfer.Counts) func() string {
	began := time.Now()
	return func() string {
		bytes := counts.Bytes.Load()
		text := bytesText(bytes + counts.Kept.Load())
		if size := counts.Size.Load(); size > 0 {
			text += " of " + bytesText(size)
		} else if files := counts.Files.Load(); files > 0 {
			text = count(files, "file", "files") + ", " + text
		}
		if past := time.Since(began); past > time.Second {
			text += ", " + bytesText(int64(float64(bytes)/past.Seconds())) + "/s"
		}
		return text
	}
}

func (r copyResult) summary() string {
	parts := []string{count(r.Files, "file", "files")}
	if r.Folders > 0 {
		parts = append(parts, count(r.Folders, "folder", "folders"))
	}
	if r.Links > 0 {
		parts = append(parts, count(r.Links, "link", "links"))
	}
	text := fmt.Sprintf("✓ Copied %s: %s in %.1f s", strings.Join(parts, ", "), bytesText(r.Bytes), r.Seconds)
	if r.KeptBytes > 0 {
		text += fmt.Sprintf(" (%s were there already)", bytesText(r.KeptBytes))
	}
	return text
}

// count is a number with its noun.
func count(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
