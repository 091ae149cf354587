package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/fault"
)

// Uploads are read as they come and never held in memory, so they pass by readBody and by what repeats answers.

// streamed reports that the body of a request is read as it comes.
func streamed(r *http.Request) bool {
	switch r.Method {
	case http.MethodPut:
		return strings.HasPrefix(r.URL.Path, "/api/v1/rootfs/") || strings.HasPrefix(r.URL.Path, "/api/rootfs/") ||
			strings.HasSuffix(r.URL.Path, "/files/content")
	case http.MethodPost:
		return r.URL.Path == "/api/v1/images/upload" || r.URL.Path == "/api/v1/builds"
	}
	return false
}

func (s *Server) routeUpload() {
	add(s, operation{method: http.MethodPost, path: "/images/upload", status: http.StatusCreated, creates: true, id: "upload-image",
		upload:  "a root file system, or a folder with a Dockerfile at its top; tar, tar.gz or tar.zst",
		summary: "Make a rootfs image of an archive; the answer comes when it is there", tag: "Images"}, s.uploadImage)
}

// UploadInput gives access to the body of a request.
type UploadInput struct{ hc huma.Context }

// Resolve implements huma.Resolver.
func (u *UploadInput) Resolve(hc huma.Context) []error {
	u.hc = hc
	return nil
}

type uploadImageInput struct {
	UploadInput
	Name        string   `query:"image_name" required:"true"`
	SizeMiB     int64    `query:"size_mib" doc:"Size of the file system, at least; default as large as the content needs, and 256 MiB"`
	Description string   `query:"description" doc:"[ours]"`
	Replace     bool     `query:"replace" doc:"[ours] An image that has the name is replaced instead of being a conflict"`
	RootFS      bool     `query:"rootfs" doc:"[ours] It is a root file system, also with a Dockerfile at its top"`
	Keep        []string `query:"keep,explode" maxItems:"3" enum:"/etc/hostname,/etc/hosts,/etc/resolv.conf" doc:"[ours] Files of a root file system that stay as they are, instead of being made those of a machine"`
	Config      string   `header:"X-Vers-Image-Config" doc:"[ours] How a root file system is run: an ImageConfig as JSON in base64"`
}

func (s *Server) uploadImage(ctx context.Context, in *uploadImageInput) (*huma.StreamResponse, error) {
	service, err := s.imageService()
	if err != nil {
		return nil, err
	}
	config, err := readImageConfig(in.Config)
	if err != nil {
		return nil, err
	}
	req := s.imageRequest(ctx, in.Name)
	req.Replace, req.SizeMiB, req.Description, req.Keep = in.Replace, in.SizeMiB, optional(in.Description), in.Keep
	req.RootFS = in.RootFS
	return s.receive(in.UploadInput, s.Images.Limit, func(ctx context.Context, u *upload) {
		u.status = http.StatusCreated
		made, err := service.Upload(ctx, req, config, u.body)
		if err != nil {
			u.fail(err)
			return
		}
		u.answer(api.ImageJob{JobID: made.ID, ImageName: made.Name, Status: api.ImageReady})
	}), nil
}

func readImageConfig(text string) (config catalog.ImageConfig, err error) {
	if text == "" {
		return config, nil
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(data, &config)
	}
	if err != nil {
		return config, fault.Invalidf("%s is not an image configuration as JSON in base64: %w", api.HeaderImageConfig, err)
	}
	return config, nil
}

// upload is one request with a body that is read as it comes, and its answer.
type upload struct {
	s       *Server
	ctx     context.Context
	w       http.ResponseWriter
	control *http.ResponseController
	body    *arriving
	log     io.Writer
	status  int  // of success
	lines   bool // the client follows the build

	mu    sync.Mutex
	begun bool // lines are sent
}

// receive lets do read the body of a request and answer it. A client that goes away ends the context; one that sends slowly
// is not waited for beyond the limit, which do has too; 0: there is none, and what is piped in may pause.
func (s *Server) receive(in UploadInput, limit time.Duration, do func(ctx context.Context, u *upload)) *huma.StreamResponse {
	return &huma.StreamResponse{Body: func(huma.Context) {
		r, w := humago.Unwrap(in.hc)
		u := &upload{s: s, ctx: r.Context(), w: w, control: http.NewResponseController(w), body: &arriving{r: r.Body, asks: r.Header.Get("Expect") != ""}, status: http.StatusOK,
			lines: strings.Contains(notesOf(r.Context()).accept, "application/x-ndjson")}
		u.log = buildLog{u}
		if limit > 0 { // do's own limit ends first; this only wakes a read that would go on waiting
			_ = u.control.SetReadDeadline(time.Now().Add(limit + time.Second)) // tests without a connection have no deadlines
		}
		do(r.Context(), u)
		if u.body.open() {
			u.drain()
		}
		_ = u.control.SetReadDeadline(time.Time{})
	}}
}

// arriving is a body of which we know whether its client still sends.
type arriving struct {
	r     io.Reader
	asks  bool // the client sends nothing before we read
	read  bool
	ended bool
}

func (a *arriving) Read(p []byte) (int, error) {
	a.read = true
	n, err := a.r.Read(p)
	a.ended = a.ended || err != nil
	return n, err
}

func (a *arriving) open() bool { return !a.ended && (a.read || !a.asks) }

// drainTime is how long a client that still sends is listened to after its answer, so that it gets to read it.
const drainTime = 3 * time.Second

func (u *upload) drain() {
	if u.control.SetReadDeadline(time.Now().Add(drainTime)) == nil {
		_, _ = io.Copy(io.Discard, u.body)
	}
}

// begin tells a client that follows the build that its upload is complete.
func (u *upload) begin() {
	if !u.lines {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.begun = true
	u.w.Header().Set("Content-Type", "application/x-ndjson")
	u.w.Header().Set("X-Accel-Buffering", "no") // a proxy in front must not hold lines back
	u.w.WriteHeader(u.status)
	_ = u.control.Flush()
}

// line sends one line, if the client follows the build and its upload is complete.
func (u *upload) line(e api.BuildEvent) (sent bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.begun {
		_ = json.NewEncoder(u.w).Encode(e) // a client that left ends the context
		_ = u.control.Flush()
	}
	return u.begun
}

// buildLog passes on what a build prints.
type buildLog struct{ u *upload }

func (l buildLog) Write(p []byte) (int, error) {
	l.u.line(api.BuildEvent{Type: api.BuildLog, Text: text(p)})
	return len(p), nil
}

// fail answers with an error.
func (u *upload) fail(err error) {
	p := u.s.failure(u.ctx, operation{creates: true}, err)
	if u.line(api.BuildEvent{Type: api.BuildError, Status: p.status, Error: p.body.Error}) {
		return
	}
	if u.body.open() { // else the answer would wait for the rest
		u.w.Header().Set("Connection", "close")
		_ = u.control.EnableFullDuplex()
	}
	p.write(u.w)
	_ = u.control.Flush()
}

// finish answers with what was built.
func (u *upload) finish(built api.RootfsBuilt, err error) {
	switch {
	case err != nil:
		u.fail(err)
	case !u.line(api.BuildEvent{Type: api.BuildResult, Result: &built}):
		u.answer(built)
	}
}

func (u *upload) answer(body any) {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(body); err != nil {
		u.fail(err)
		return
	}
	u.w.Header().Set("Content-Type", "application/json")
	u.w.WriteHeader(u.status)
	_, _ = u.w.Write(b.Bytes()) // the client is gone, nobody is left to tell
}

// cutPair reads KEY=VALUE.
func cutPair(pair string) (key, value string, ok bool) {
	key, value, ok = strings.Cut(pair, "=")
	return key, value, ok && key != ""
}
