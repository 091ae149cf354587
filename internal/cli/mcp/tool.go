package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// Tool describes a tool.
type Tool struct {
	Name        string // with dots
	Title       string
	Description string // for the model: what it does, what it needs, what it gives
	PerMinute   int    // calls per minute by all clients together; 0: no limit
	ReadOnly    bool
	Destructive bool
	Idempotent  bool
}

// tool is a Tool in use. Both spellings of the name share limit and counters.
type tool struct {
	name  string
	limit limit
	count counter
}

func (t *tool) spellings(names Names) []string {
	underlined := strings.ReplaceAll(t.name, ".", "_")
	switch names {
	case DotNames:
		return []string{t.name}
	case UnderlineNames:
		return []string{underlined}
	}
	return []string{t.name, underlined}
}

// Call is one call of a tool.
type Call struct {
	request *sdk.CallToolRequest
	mask    *Mask
	notes   []string
	text    string
}

// Note adds a line that the model is shown beside the result.
func (c *Call) Note(line string) { c.notes = append(c.notes, line) }

// Text replaces the result's JSON in what is shown to clients that read text.
func (c *Call) Text(text string) { c.text = text }

// Add adds a tool. In is a struct, whose tags json and jsonschema describe the arguments; Out one that describes the
// result. A failure of do reaches the model with its code.
func Add[In, Out any](s *Server, t Tool, do func(ctx context.Context, call *Call, in In) (Out, error)) {
	added := &tool{name: t.Name, limit: limit{perMinute: t.PerMinute}}
	s.order = append(s.order, added)
	handler := func(ctx context.Context, req *sdk.CallToolRequest, in In) (*sdk.CallToolResult, Out, error) {
		call := &Call{request: req, mask: s.options.Mask}
		out, err := do(ctx, call, in)
		if err != nil {
			return nil, out, s.failure(call.withNotes(err))
		}
		text := call.text
		if text == "" {
			data, err := json.Marshal(out)
			if err != nil {
				return nil, out, s.failure(fmt.Errorf("encode the result: %w", err))
			}
			text = string(data)
		}
		result := &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: text}}}
		for _, note := range call.notes {
			result.Content = append(result.Content, &sdk.TextContent{Text: note})
		}
		return result, out, nil
	}
	destructive, open := t.Destructive, false
	description := t.Description
	if t.PerMinute > 0 {
		description += fmt.Sprintf(" At most %d calls per minute.", t.PerMinute)
	}
	for _, name := range added.spellings(s.options.Names) {
		s.tools[name] = added
		sdk.AddTool(s.sdk, &sdk.Tool{
			Name: name, Title: t.Title, Description: description,
			Annotations: &sdk.ToolAnnotations{
				Title: t.Title, ReadOnlyHint: t.ReadOnly, DestructiveHint: &destructive, IdempotentHint: t.Idempotent || t.ReadOnly,
				OpenWorldHint: &open,
			},
		}, handler)
	}
}

// withNotes lets a failure carry what was noted before it.
func (c *Call) withNotes(err error) error {
	if len(c.notes) == 0 {
		return err
	}
	return fmt.Errorf("%w\n%s", err, strings.Join(c.notes, "\n"))
}
