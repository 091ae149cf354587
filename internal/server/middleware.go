package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"vers/api"
	"vers/internal/fault"
	"vers/internal/ident"
)

// notes travel with a request to its log line.
type notes struct {
	id  string // of the request
	org string
	key string // id of the API key, never the key
	err error

	address string            // host it came from
	pattern string            // of the router: method and path; "" where nothing answers
	action  string            // id of the operation
	orgName string            // if it is known
	actor   string            // who calls without a key
	made    map[string]string // ids, by field, of what an answer without JSON fields has made
	accept  string            // what the client can read; only calls that have two forms look at it
}

func notesOf(ctx context.Context) *notes {
	if n, ok := ctx.Value(keyNotes).(*notes); ok {
		return n
	}
	return &notes{}
}

// responseWriter remembers what was answered.
type responseWriter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *responseWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *responseWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController find what it needs.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// observe gives the request an id, logs it, and turns a panic into an answer. Queries are not logged: they may name
// files; nor are bodies and headers.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		start, n, w := time.Now(), &notes{id: ident.New(), address: addressOf(r)}, &responseWriter{ResponseWriter: rw}
		r = r.WithContext(context.WithValue(r.Context(), keyNotes, n))
		w.Header().Set(api.HeaderRequestID, n.id)
		s.requests.Add(1)
		defer s.requests.Add(-1)
		defer func() {
			if p := recover(); p != nil {
				s.panicked(r.Context(), w, p)
			}
			s.logRequest(r, w, n, time.Since(start))
			s.metrics.answered(n, r.Method, w.status, time.Since(start))
		}()
		next.ServeHTTP(w, r)
	})
}

func (s *Server) panicked(ctx context.Context, w *responseWriter, p any) {
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p) // net/http's own way to cut a connection
	}
	if w.status != 0 && ctx.Err() != nil {
		return // huma panics when it cannot write; the client is gone
	}
	err := fmt.Errorf("panic: %v\n%s", p, debug.Stack())
	if answer := s.failure(ctx, operation{creates: true}, err); w.status == 0 {
		answer.write(w)
	}
}

func (s *Server) logRequest(r *http.Request, w *responseWriter, n *notes, took time.Duration) {
	level := slog.LevelInfo
	attributes := []slog.Attr{
		slog.String("request_id", n.id), slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.Int("status", w.status), slog.Int64("bytes", w.bytes), slog.Duration("took", took),
		slog.String("org", n.org), slog.String("key", n.key),
	}
	if w.status >= 500 {
		level = slog.LevelWarn
		if n.err != nil {
			attributes = append(attributes, slog.Any("error", n.err))
		}
	}
	s.Logger.LogAttrs(r.Context(), level, "request", attributes...)
}

// cleanPath makes one slash of several, as some clients send them. The router would answer with a redirect, which turns
// POST into GET. Paths with dot segments name nothing here.
func (s *Server) cleanPath(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var segments []string
		escaped := r.URL.EscapedPath()
		for _, segment := range strings.Split(escaped, "/") {
			if segment == "." || segment == ".." {
				s.noRoute(r).write(w)
				return
			}
			if segment != "" {
				segments = append(segments, segment)
			}
		}
		cleaned := "/" + strings.Join(segments, "/")
		if len(segments) > 0 && strings.HasSuffix(escaped, "/") {
			cleaned += "/"
		}
		if cleaned != escaped {
			plain, err := url.PathUnescape(cleaned)
			if err != nil {
				s.noRoute(r).write(w)
				return
			}
			u := *r.URL
			u.Path, u.RawPath = plain, cleaned
			r = r.WithContext(r.Context()) // a copy, the caller's request stays as it is
			r.URL = &u
		}
		n := notesOf(r.Context())
		_, n.pattern = s.mux.Handler(r)
		n.action = s.actions[n.pattern]
		next.ServeHTTP(w, r)
	})
}

// Limits of request bodies, in bytes. Files travel as base64 inside JSON, so a third larger than they are.
const (
	bodyLimit     = 17 << 20 // standard input of commands is the largest
	fileBodyLimit = 96 << 20

	publicBodyLimit = 64 << 10
	bodyTime        = 5 * time.Minute
)

// readBody takes the whole body in, whatever its Content-Type says it is: all bodies but uploads are JSON.
func (s *Server) readBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody || streamed(r) {
			next.ServeHTTP(w, r)
			return
		}
		limit := int64(bodyLimit)
		switch {
		case strings.HasSuffix(r.URL.Path, "/files"):
			limit = fileBodyLimit
		case public(r.URL.Path): // anybody may send it
			limit = publicBodyLimit
		}
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(s.now().Add(bodyTime)) // tests without a connection have no deadlines
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
		_ = control.SetReadDeadline(time.Time{})
		var large *http.MaxBytesError
		switch {
		case errors.As(err, &large):
			s.failure(r.Context(), operation{}, fmt.Errorf("the request body is %w: at most %d bytes are possible here", errTooLarge, limit)).write(w)
			return
		case err != nil:
			s.failure(r.Context(), operation{}, fault.Invalidf("the request body could not be read to its end: %w", err)).write(w)
			return
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Header.Set("Content-Type", "application/json")
		next.ServeHTTP(w, r)
	})
}

// route lets the router answer, except that its own errors get our body.
func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	notesOf(r.Context()).accept = r.Header.Get("Accept")
	r.Header.Del("Accept") // the router knows one format
	if notesOf(r.Context()).pattern != "" {
		s.mux.ServeHTTP(w, r)
		return
	}
	// The router knows which methods the path has; ask it, but answer ourselves.
	sink := &discardWriter{header: http.Header{}}
	s.mux.ServeHTTP(sink, r)
	if sink.status != http.StatusMethodNotAllowed {
		s.noRoute(r).write(w)
		return
	}
	allowed := sink.header.Get("Allow")
	w.Header().Set("Allow", allowed)
	(&problem{status: sink.status, body: api.Error{Error: fmt.Sprintf("%s is not possible on %s; %s is", r.Method, r.URL.Path, allowed)}}).write(w)
}

func (s *Server) noRoute(r *http.Request) *problem {
	return &problem{status: http.StatusNotFound, body: api.Error{
		Error: fmt.Sprintf("endpoint not found: %s %s; GET /openapi.yaml lists what there is", r.Method, r.URL.Path),
	}}
}

// discardWriter keeps status and header only.
type discardWriter struct {
	header http.Header
	status int
}

func (d *discardWriter) Header() http.Header         { return d.header }
func (d *discardWriter) WriteHeader(status int)      { d.status = status }
func (d *discardWriter) Write(p []byte) (int, error) { return len(p), nil }
