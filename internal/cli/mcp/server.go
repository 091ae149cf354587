// Package mcp is the frame of `vers mcp serve`: a Model Context Protocol server on standard streams or HTTP with what
// all tools share: two spellings of each name, limits per minute, error codes, masked keys, counters. What the tools do
// is in internal/cli, where the commands are.
package mcp

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// Options are what a Server is made of.
type Options struct {
	Version      string
	Instructions string                 // tells the model what this server is for
	Names        Names                  // spellings of the tools' names
	Mask         *Mask                  // what must not get out
	Code         func(err error) string // error code of a tool's failure; nil: always Internal
	Log          *slog.Logger           // never standard output, which belongs to the protocol
	Now          func() time.Time       // nil: time.Now
}

// Names says how tools are called: some clients refuse dots, scripts for other servers of this kind use them.
type Names string

// The spellings.
const (
	BothNames      Names = "both"
	DotNames       Names = "dots"
	UnderlineNames Names = "underscores"
)

// Error codes, the first word of a failed call's text (spec/cli.md 11.1).
const (
	Invalid         = "E_INVALID"
	ConfirmRequired = "E_CONFIRM_REQUIRED"
	NotFound        = "E_NOT_FOUND"
	Conflict        = "E_CONFLICT"
	Internal        = "E_INTERNAL"
)

// Server holds the tools. It serves one client on standard streams, or any number by HTTP.
type Server struct {
	options Options
	sdk     *sdk.Server
	started time.Time
	tools   map[string]*tool // by both spellings
	order   []*tool
}

// New makes a server without tools.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Mask == nil {
		o.Mask = &Mask{}
	}
	if o.Code == nil {
		o.Code = func(error) string { return Internal }
	}
	if o.Names == "" {
		o.Names = BothNames
	}
	s := &Server{options: o, started: o.Now(), tools: map[string]*tool{}}
	s.sdk = sdk.NewServer(&sdk.Implementation{Name: "vers", Title: "vers: git for running machines", Version: o.Version},
		&sdk.ServerOptions{
			Instructions: o.Instructions, Logger: o.Log,
			Capabilities: &sdk.ServerCapabilities{
				Logging: &sdk.LoggingCapabilities{}, //nolint:staticcheck // clients of protocols before 2026-07-28 get output so
			},
		})
	s.sdk.AddReceivingMiddleware(s.guard)
	return s
}

// Tools gives the names of the tools, with dots unless only underscores are used, in the order of their addition.
func (s *Server) Tools() []string {
	names := make([]string, len(s.order))
	for i, t := range s.order {
		names[i] = t.spellings(s.options.Names)[0]
	}
	return names
}

// AddResource adds a document that clients can read; read gives its JSON.
func (s *Server) AddResource(uri, name, description string, read func(context.Context) (string, error)) {
	s.sdk.AddResource(&sdk.Resource{URI: uri, Name: name, Description: description, MIMEType: "application/json"},
		func(ctx context.Context, _ *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
			text, err := read(ctx)
			if err != nil {
				return nil, s.failure(err)
			}
			return &sdk.ReadResourceResult{Contents: []*sdk.ResourceContents{
				{URI: uri, MIMEType: "application/json", Text: s.options.Mask.Text(text)},
			}}, nil
		})
}

// ServeStreams speaks with one client and returns when that closes in, or when ctx ends.
func (s *Server) ServeStreams(ctx context.Context, in io.Reader, out io.Writer) error {
	err := s.sdk.Run(ctx, &sdk.IOTransport{Reader: io.NopCloser(in), Writer: nopCloser{out}})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("speak with the MCP client: %w", err)
	}
	return nil
}

type nopCloser struct{ io.Writer }

// Close implements io.Closer.
func (nopCloser) Close() error { return nil }

// guard stands before every call of a tool: it counts, limits, masks, and gives failures their code.
func (s *Server) guard(next sdk.MethodHandler) sdk.MethodHandler {
	return func(ctx context.Context, method string, req sdk.Request) (sdk.Result, error) {
		call, ok := req.(*sdk.CallToolRequest)
		if !ok {
			return next(ctx, method, req)
		}
		t := s.tools[call.Params.Name]
		if t == nil {
			return next(ctx, method, req) // the SDK says what is wrong with the name
		}
		began := s.options.Now()
		if wait, ok := t.limit.take(began); !ok {
			t.count.refuse()
			return failed(fmt.Sprintf("%s: %s may be called %d times per minute; try again in %d s",
				Conflict, call.Params.Name, t.limit.perMinute, int(wait/time.Second)+1)), nil
		}
		t.count.begin()
		result, err := next(ctx, method, req)
		answer, _ := result.(*sdk.CallToolResult)
		if answer != nil {
			s.clean(answer)
		}
		took := s.options.Now().Sub(began)
		t.count.end(took, err != nil || answer != nil && answer.IsError)
		s.options.Log.Info("tool called", "tool", t.name, "took", took.Round(time.Millisecond), "failed", err != nil || answer != nil && answer.IsError)
		return result, err
	}
}

// clean masks an answer; a failure without a code is one of the arguments, which the SDK checks before the tool is asked.
func (s *Server) clean(answer *sdk.CallToolResult) {
	for i, content := range answer.Content {
		text, ok := content.(*sdk.TextContent)
		if !ok {
			continue
		}
		text.Text = s.options.Mask.Text(text.Text)
		if answer.IsError && i == 0 && !hasCode(text.Text) {
			text.Text = Invalid + ": " + text.Text
		}
	}
	if data, ok := answer.StructuredContent.(interface{ MarshalJSON() ([]byte, error) }); ok {
		if raw, err := data.MarshalJSON(); err == nil {
			answer.StructuredContent = s.options.Mask.JSON(raw)
		}
	}
}

func hasCode(text string) bool {
	code, _, _ := strings.Cut(text, ":")
	return slices.Contains([]string{Invalid, ConfirmRequired, NotFound, Conflict, Internal}, code)
}

// failure gives an error its code.
func (s *Server) failure(err error) error {
	return fmt.Errorf("%s: %w", s.options.Code(err), err)
}

func failed(text string) *sdk.CallToolResult {
	return &sdk.CallToolResult{IsError: true, Content: []sdk.Content{&sdk.TextContent{Text: text}}}
}
