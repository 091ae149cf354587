package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"vers/api"
	"vers/internal/build/steps"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/guest"
	"vers/internal/machine"
)

// Builds that end in a commit (spec/cli.md 6.6). The archive is read to its end before the first line of the answer.

func (s *Server) routeBuilds() {
	lines := map[string]*huma.Response{"200": {
		Description: "One JSON object per line; the last one is a result or an error, and a stream that ends otherwise was cut",
		Content: map[string]*huma.MediaType{"application/x-ndjson": {
			Schema: s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.CommitBuildEvent](), true, ""),
		}},
	}}
	add(s, operation{method: http.MethodPost, path: "/builds", id: "build-commit", creates: true, responses: lines, tag: "Builds",
		upload:  "a folder with a Dockerfile, tar, tar.gz or tar.zst; its .dockerignore is honoured",
		summary: "[ours] Run a Dockerfile in a VM, with a commit after each step; the build ends when the client leaves"}, s.buildCommit)
}

// newBuilder makes the runner of builds. Their commands reach VMs as those of users do.
func (s *Server) newBuilder() *steps.Runner {
	return steps.New(steps.Options{Catalog: s.Catalog, Registry: s.Registry, Machines: s.Machines, Logger: s.Logger, Dir: s.BuildDir,
		Guest: func(ctx context.Context, caller machine.Caller, vmID string) (steps.Guest, error) {
			access, err := s.guests(ctx, caller, vmID)
			return buildGuest{access}, err
		}})
}

// buildGuest is a guest as builds know it.
type buildGuest struct{ guestAccess }

// Exec implements steps.Guest.
func (g buildGuest) Exec(ctx context.Context, req guest.ExecRequest) (steps.Stream, error) {
	return g.guestAccess.Exec(ctx, req)
}

type buildCommitInput struct {
	UploadInput
	Dockerfile   string   `query:"dockerfile" doc:"Path in the folder; default Dockerfile"`
	Tag          string   `query:"tag" doc:"Of the commit: repo:tag, whose repository is made if it is missing, or a plain tag; one that exists moves"`
	Target       string   `query:"target" doc:"Stage to build; default the last"`
	NoCache      bool     `query:"no_cache" doc:"Run every step again"`
	Keep         bool     `query:"keep" doc:"Leave the VM, also when the build fails"`
	BuildArgs    []string `query:"build_arg,explode" doc:"KEY=VALUE for ARG, repeatable"`
	Ready        string   `query:"ready" doc:"Command that is tried in the VM until it succeeds, before the commit"`
	ReadyTimeout int64    `query:"ready_timeout_secs" doc:"Default 300"`
	MemSizeMiB   int64    `query:"mem_size_mib" doc:"For FROM scratch and FROM an image, as are the others"`
	VCPUCount    int64    `query:"vcpu_count"`
	FSSizeMiB    int64    `query:"fs_size_mib"`
	ImageName    string   `query:"image_name" doc:"What FROM scratch is; default the default image"`
	KernelName   string   `query:"kernel_name"`
}

func (in buildCommitInput) request() (steps.Request, error) {
	args, err := buildArgs(in.BuildArgs)
	if err != nil {
		return steps.Request{}, err
	}
	if in.ReadyTimeout < 0 {
		return steps.Request{}, fault.Invalidf("ready_timeout_secs is %d; it must be positive", in.ReadyTimeout)
	}
	req := steps.Request{Dockerfile: in.Dockerfile, Tag: in.Tag, Target: in.Target, Args: args, NoCache: in.NoCache, Keep: in.Keep,
		Ready: in.Ready, ReadyTimeout: time.Duration(min(in.ReadyTimeout, 1<<30)) * time.Second,
		Config: catalog.VMConfig{MemSizeMiB: in.MemSizeMiB, VCPUCount: in.VCPUCount, FSSizeMiB: in.FSSizeMiB, ImageName: in.ImageName, KernelName: in.KernelName}}
	if req.Dockerfile == "" {
		req.Dockerfile = "Dockerfile"
	}
	return req, nil
}

func (s *Server) buildCommit(_ context.Context, in *buildCommitInput) (*huma.StreamResponse, error) {
	req, err := in.request()
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(huma.Context) {
		r, w := humago.Unwrap(in.hc)
		b := buildAnswer{s: s, w: w, control: http.NewResponseController(w)}
		b.serve(r, req)
	}}, nil
}

// uploadPause is how long a client may send nothing of its archive.
const uploadPause = time.Minute

// steady reads a body whose client must not stop sending.
type steady struct {
	io.Reader
	control *http.ResponseController
}

func (s steady) Read(p []byte) (int, error) {
	_ = s.control.SetReadDeadline(time.Now().Add(uploadPause)) // tests without a connection have no deadlines
	return s.Reader.Read(p)
}

// buildAnswer is the answer to a build.
type buildAnswer struct {
	s       *Server
	w       http.ResponseWriter
	control *http.ResponseController
	encoder *json.Encoder // once lines are sent
	broken  error         // the client takes no more
}

func (b *buildAnswer) serve(r *http.Request, req steps.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	body := &arriving{r: r.Body, asks: r.Header.Get("Expect") != ""}
	tree, err := b.s.builder.Read(ctx, steady{body, b.control})
	if err == nil {
		err = b.readEnd(steady{body, b.control})
	}
	if err != nil {
		if tree != nil {
			tree.Close()
		}
		b.refuse(ctx, body, err)
		return
	}
	defer tree.Close()
	_ = b.control.SetReadDeadline(time.Time{})
	req.Context = tree
	b.w.Header().Set("Content-Type", "application/x-ndjson")
	b.w.Header().Set("X-Accel-Buffering", "no") // a proxy in front must not hold lines back
	b.w.WriteHeader(http.StatusOK)
	b.encoder = json.NewEncoder(b.w)
	result, err := b.s.builder.Build(ctx, callerKey(r.Context()), req, func(e steps.Event) {
		if b.line(showBuildEvent(e)); b.broken != nil {
			cancel(context.Canceled) // nobody follows the build any more
		}
	})
	if err != nil {
		b.line(api.CommitBuildEvent{Type: api.CommitBuildFailed, Error: b.failed(r.Context(), err)})
		return
	}
	notesOf(r.Context()).made = map[string]string{"commit_id": result.CommitID}
	b.line(api.CommitBuildEvent{Type: api.CommitBuildResult, Result: showBuild(result)})
}

// maxPadding is what may follow an archive: programs that write tar fill up a block.
const maxPadding = 1 << 20

// readEnd reads what follows the archive: only then is it known when the client leaves.
func (b *buildAnswer) readEnd(body io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(body, maxPadding+1))
	if err == nil && n > maxPadding {
		err = fault.Invalidf("more than %d MiB follow the end of the archive", maxPadding>>20)
	}
	return err
}

func (b *buildAnswer) line(e api.CommitBuildEvent) {
	if b.broken == nil {
		b.broken = errors.Join(b.encoder.Encode(e), b.control.Flush())
	}
}

// refuse answers before the build begins, perhaps while the client still sends.
func (b *buildAnswer) refuse(ctx context.Context, body *arriving, err error) {
	p := b.s.failure(ctx, operation{creates: true}, err)
	if body.open() {
		b.w.Header().Set("Connection", "close")
		_ = b.control.EnableFullDuplex()
	}
	p.write(b.w)
	_ = b.control.Flush()
	if body.open() && b.control.SetReadDeadline(time.Now().Add(drainTime)) == nil {
		_, _ = io.Copy(io.Discard, body)
	}
}

// failed is the last line of a build that failed.
func (b *buildAnswer) failed(ctx context.Context, err error) *api.CommitBuildError {
	var step *steps.StepError
	shown := &api.CommitBuildError{}
	if errors.As(err, &step) {
		shown.Number, shown.Line, shown.Text, shown.ExitCode, shown.BuilderVMID = step.Number, step.Line, step.Text, step.Code, optional(step.VMID)
	}
	if shown.ExitCode != nil {
		shown.Code, shown.Message = api.StepFailed, err.Error()
		notesOf(ctx).err = err
		return shown
	}
	p := b.s.failure(ctx, operation{creates: true}, err)
	shown.Code, shown.Message, shown.Status = codeOf(fault.KindOf(err).String()), p.body.Error, p.status
	return shown
}

func showBuildEvent(e steps.Event) api.CommitBuildEvent {
	return api.CommitBuildEvent{Type: e.Type, Number: e.Number, Total: e.Total, Stage: e.Stage, Line: e.Line, Text: strings.ToValidUTF8(e.Text, "\uFFFD"),
		Stream: e.Stream, Data: e.Data, CommitID: e.Commit, DurationMS: e.Took.Milliseconds()}
}

func showBuild(r steps.Result) *api.CommitBuild {
	list := func(l []string) []string { return append([]string{}, l...) }
	labels := r.Image.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	return &api.CommitBuild{CommitID: r.CommitID, Tag: optional(r.Tag), BuilderVMID: optional(r.BuilderVMID), Steps: r.Steps, CachedSteps: r.CachedSteps, Cached: r.Cached,
		Cmd: list(r.Image.Cmd), Entrypoint: list(r.Image.Entrypoint), ExposedPorts: list(r.Image.ExposedPorts), Labels: labels, Env: list(r.Image.Env),
		WorkingDir: r.Image.WorkingDir, User: r.Image.User, DurationMS: r.Took.Milliseconds()}
}
