package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"vers/api"
	"vers/internal/build/images"
	"vers/internal/fault"
)

// statuses maps kinds of fault to HTTP. Exhausted is 507: both old and new clients make exit code 1 of it, as
// spec/cli.md 5.3 wants, and it says more than 500.
var statuses = map[fault.Kind]int{
	fault.NotFound:        http.StatusNotFound,
	fault.Conflict:        http.StatusConflict,
	fault.Invalid:         http.StatusBadRequest,
	fault.Unauthenticated: http.StatusUnauthorized,
	fault.Forbidden:       http.StatusForbidden,
	fault.Exhausted:       http.StatusInsufficientStorage,
	fault.Unavailable:     http.StatusServiceUnavailable,
	fault.Timeout:         http.StatusGatewayTimeout,
}

// errTooLarge is answered with 413.
var errTooLarge = errors.New("too large")

// problem is an answer with an error. It implements huma.StatusError and huma.HeadersError.
type problem struct {
	status int
	header http.Header
	body   api.Error
	vms    bool
}

func (p *problem) GetStatus() int          { return p.status }
func (p *problem) Error() string           { return p.body.Error }
func (p *problem) GetHeaders() http.Header { return p.header }

// MarshalJSON gives the body of the answer.
func (p *problem) MarshalJSON() ([]byte, error) {
	if p.vms {
		return json.Marshal(api.VMsError{Error: p.body, VMs: []api.VMRef{}})
	}
	return json.Marshal(p.body)
}

func (p *problem) write(w http.ResponseWriter) {
	for name, values := range p.header {
		w.Header()[name] = values
	}
	body, _ := p.MarshalJSON() //nolint:errcheck // strings and a bool always work
	body = append(body, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body))) // so that it is complete before a handler has ended
	w.WriteHeader(p.status)
	w.Write(body) //nolint:errcheck // the client is gone, nobody is left to tell
}

// failure makes the answer for an error. Known kinds are passed through with their message; an internal error goes to
// the log, and the client gets the id it can be found under.
func (s *Server) failure(ctx context.Context, o operation, err error) *problem {
	kind := fault.KindOf(err)
	p := &problem{status: statuses[kind], header: http.Header{}, body: api.Error{Error: err.Error()}, vms: o.vms}
	notes := notesOf(ctx)
	var busy *errBusy
	switch {
	case errors.Is(err, errTooLarge), errors.Is(err, images.ErrTooLarge):
		p.status = http.StatusRequestEntityTooLarge
	case errors.Is(err, errNotOffered):
		p.status = http.StatusNotImplemented
	case errors.As(err, &busy):
		p.status = http.StatusTooManyRequests
		p.header.Set("Retry-After", strconv.Itoa(int(busy.wait.Seconds())+1))
	case kind != fault.Internal:
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		p.status, p.body.Error = http.StatusServiceUnavailable, "the request was cancelled"
	case errors.Is(err, context.DeadlineExceeded):
		p.status, p.body.Error = http.StatusGatewayTimeout, "the server's time limit for this call ran out: "+err.Error()
	default:
		p.status = http.StatusInternalServerError
		p.body = api.Error{Error: "internal error; the server's log says more under request id " + notes.id, RequestID: notes.id}
		s.Logger.ErrorContext(ctx, "request failed", "request_id", notes.id, "error", err)
	}
	notes.err = err
	if final(p.status, o.creates) {
		p.header.Set(api.HeaderShouldRetry, "false")
	}
	return p
}

// final reports whether trying again is useless or would do something twice.
func final(status int, creates bool) bool {
	switch {
	case status == http.StatusConflict, status == http.StatusInsufficientStorage, status == http.StatusNotImplemented:
		return true
	case status >= 500:
		return creates
	}
	return false
}
