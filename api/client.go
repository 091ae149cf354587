package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Client calls the API of one server. It is safe for concurrent use. Every method takes a context that bounds the
// call, retries included; there is no other time limit. Ids are full UUIDs, names are sent as they are.
//
// Errors are *ResponseError (the server answered with a status of 400 or more), *ConnectError (it could not be
// reached), or the context's error; use errors.As and errors.Is.
type Client struct {
	address   string // as given, for messages
	base      *url.URL
	key       string
	userAgent string
	host      string
	trace     func(string)
	http      *http.Client
}

// Option changes a Client while NewClient makes it.
type Option func(*Client)

// WithKey sends key as bearer token. A server's UNIX socket needs none.
func WithKey(key string) Option { return func(c *Client) { c.key = key } }

// WithUserAgent names the program that calls.
func WithUserAgent(name string) Option { return func(c *Client) { c.userAgent = name } }

// WithHostHeader replaces the Host header, for tests behind a proxy.
func WithHostHeader(host string) Option { return func(c *Client) { c.host = host } }

// WithTrace calls trace with one line for every request and answer. Keys are never in it.
func WithTrace(trace func(line string)) Option { return func(c *Client) { c.trace = trace } }

// NewClient makes a client for the server at address: http://host[:port][/prefix], https://… or unix:///path/to.sock.
// Nothing is sent yet.
func NewClient(address string, options ...Option) (*Client, error) {
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		// Uploads ask first whether they are wanted; a server that does not answer that gets them anyway.
		ExpectContinueTimeout: 5 * time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   8,
		// HTTP/1.1 only: HTTP/2 cannot upgrade a connection to SSH.
		TLSNextProto: nil,
	}
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP1(true)
	c := &Client{address: address, userAgent: "vers-go-client", trace: func(string) {}, http: &http.Client{Transport: transport}}
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("server address %q cannot be read: %w", address, err)
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		path := u.Path
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		c.base = &url.URL{Scheme: "http", Host: "localhost"}
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		c.base = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(u.Path, "/")}
	default:
		return nil, fmt.Errorf("server address %q must start with http://, https:// or unix:/// and name a host or a path", address)
	}
	for _, option := range options {
		option(c)
	}
	return c, nil
}

// Address is the server's address as it was given.
func (c *Client) Address() string { return c.address }

// CloseIdle closes connections that are kept for later calls.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }

// ResponseError is an answer with a status of 400 or more.
type ResponseError struct {
	Status    int    // HTTP status
	Message   string // the server's words, or the status text if it gave none
	RequestID string // names the request in the server's log; may be empty
	Method    string
	Path      string
}

func (e *ResponseError) Error() string {
	if e.Status >= 500 && e.RequestID != "" {
		return fmt.Sprintf("%s (request %s in the server's log)", e.Message, e.RequestID)
	}
	return e.Message
}

// StatusOf gives the HTTP status of a ResponseError in err's chain, or 0.
func StatusOf(err error) int {
	var response *ResponseError
	if errors.As(err, &response) {
		return response.Status
	}
	return 0
}

// IsNotFound reports that the server answered 404.
func IsNotFound(err error) bool { return StatusOf(err) == http.StatusNotFound }

// ConnectError says that no answer came: nobody listens, the name is unknown, or the connection broke.
type ConnectError struct {
	Address string
	Refused bool // the connection was never made, so nothing happened on the server
	Err     error
}

func (e *ConnectError) Error() string {
	if e.Refused {
		return fmt.Sprintf("cannot reach the server at %s: %v", e.Address, e.Err)
	}
	return fmt.Sprintf("the connection to the server at %s broke: %v", e.Address, e.Err)
}

// Unwrap gives the cause.
func (e *ConnectError) Unwrap() error { return e.Err }

// Pauses between attempts. Calls that never reached the server are repeated whatever they do, broken ones only when
// they do not change anything.
var retryDelays = []time.Duration{100 * time.Millisecond, 300 * time.Millisecond}

// call is one API call.
type call struct {
	method string
	path   []string // segments after /api/v1
	root   string   // what stands in front of path instead of api/v1
	query  url.Values
	body   any       // nil: none
	upload io.Reader // instead of body, a tar archive; the call is made once
	octets bool      // the upload is plain bytes
	accept string
	header http.Header
}

// context gives an upload a context of its own: it ends with the answer.
func (r call) context(ctx context.Context) (context.Context, context.CancelFunc) {
	if r.upload == nil {
		return ctx, func() {}
	}
	return context.WithCancel(ctx)
}

// do makes the call and decodes the answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, r call, out any) error {
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // only to keep the connection usable
		return nil
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind != "application/json" {
		return fmt.Errorf("%s answered %s %s with %q instead of JSON; is it a vers server?",
			c.address, r.method, resp.Request.URL.Path, resp.Header.Get("Content-Type"))
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("read the answer to %s %s: %w", r.method, resp.Request.URL.Path, err)
	}
	return nil
}

// send makes the call, with retries, and returns an answer with a status below 400.
func (c *Client) send(ctx context.Context, r call) (*http.Response, error) {
	var body []byte
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
	}
	idempotency := ""
	if r.method != http.MethodGet && r.upload == nil {
		idempotency = uuid.NewString()
	}
	for attempt := 0; ; attempt++ {
		resp, err := c.once(ctx, r, body, idempotency)
		if err == nil {
			return resp, nil
		}
		if attempt >= len(retryDelays) || r.upload != nil || !repeatable(r.method, err) {
			return nil, err
		}
		c.trace(fmt.Sprintf("trying again: %v", err))
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(retryDelays[attempt]):
		}
	}
}

// repeatable reports whether a failed call may be made again without doing something twice.
func repeatable(method string, err error) bool {
	var connect *ConnectError
	if errors.As(err, &connect) {
		var dns *net.DNSError
		if errors.As(err, &dns) && dns.IsNotFound {
			return false
		}
		return connect.Refused || method == http.MethodGet
	}
	status := StatusOf(err)
	return method == http.MethodGet && (status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable)
}

func (c *Client) once(ctx context.Context, r call, body []byte, idempotency string) (*http.Response, error) {
	u := *c.base
	root := cmp.Or(r.root, "api/v1")
	escaped := []string{strings.TrimRight(u.EscapedPath(), "/"), root}
	plain := []string{u.Path, root}
	for _, segment := range r.path {
		escaped = append(escaped, url.PathEscape(segment))
		plain = append(plain, segment)
	}
	u.Path, u.RawPath, u.RawQuery = strings.Join(plain, "/"), strings.Join(escaped, "/"), r.query.Encode()
	var content io.Reader = bytes.NewReader(body)
	calling, cancel := r.context(ctx)
	if r.upload != nil {
		content = r.upload
	}
	req, err := http.NewRequestWithContext(calling, r.method, u.String(), content)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("make the request: %w", err)
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", c.userAgent)
	req.Header.Set("Accept", "application/json")
	if r.accept != "" {
		req.Header.Set("Accept", r.accept)
	}
	switch {
	case r.upload != nil:
		req.Header.Set("Content-Type", "application/x-tar")
		if r.octets {
			req.Header.Set("Content-Type", "application/octet-stream")
		}
		req.Header.Set("Expect", "100-continue")
	case len(body) > 0:
		req.Header.Set("Content-Type", "application/json")
	}
	if idempotency != "" {
		req.Header.Set(HeaderIdempotencyKey, idempotency)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	if c.host != "" {
		req.Host = c.host
	}
	start := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		cancel()
		c.trace(fmt.Sprintf("%s %s: %v", r.method, u.RequestURI(), err))
		return nil, c.transportError(ctx, err)
	}
	c.trace(fmt.Sprintf("%s %s: %s in %v", r.method, u.RequestURI(), resp.Status, time.Since(start).Round(time.Microsecond)))
	if resp.StatusCode >= 400 {
		defer cancel() // what is still being sent is not wanted
		defer resp.Body.Close()
		return nil, responseError(resp)
	}
	if r.upload == nil {
		return resp, nil
	}
	resp.Body = cancelled{resp.Body, cancel}
	return resp, nil
}

// cancelled is the body of an answer whose call ends with it.
type cancelled struct {
	io.ReadCloser
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (c cancelled) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}

// transportError says whether the request can have reached the server.
func (c *Client) transportError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // method and URL say nothing that the address does not
	}
	var op *net.OpError
	refused := errors.As(err, &op) && op.Op == "dial"
	if refused && op.Err != nil {
		err = op.Err
	}
	return &ConnectError{Address: c.address, Refused: refused, Err: err}
}

func responseError(resp *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	e := &ResponseError{
		Status: resp.StatusCode, RequestID: resp.Header.Get(HeaderRequestID),
		Method: resp.Request.Method, Path: resp.Request.URL.Path,
	}
	var body struct {
		Error   string `json:"error"`
		Message string `json:"message"`
	}
	if json.Unmarshal(data, &body) == nil {
		e.Message = body.Error
		if e.Message == "" {
			e.Message = body.Message
		}
	} else {
		e.Message = strings.TrimSpace(string(data))
	}
	if e.Message == "" {
		e.Message = fmt.Sprintf("the server answered %s to %s %s", resp.Status, e.Method, e.Path)
	}
	return e
}
