package cli

import (
	"context"
	"encoding/base64"
	"strconv"
	"unicode/utf8"

	"vers/api"
	"vers/internal/cli/mcp"
	"vers/internal/fault"
)

func (m *agentTools) addFileTools(s *mcp.Server) {
	mcp.Add(s, mcp.Tool{
		Name: "vers.file.read", Title: "Read a file of a VM", PerMinute: 60, ReadOnly: true,
		Description: "Reads a file of a running VM, or a part of it. Content that is no text is given in base64.",
	}, m.readFile)
	mcp.Add(s, mcp.Tool{
		Name: "vers.file.write", Title: "Write a file of a VM", PerMinute: 60, Destructive: true, Idempotent: true,
		Description: "Makes or replaces a file of a running VM.",
	}, m.writeFile)
}

type readFileInput struct {
	vmInput
	Path     string `json:"path" jsonschema:"absolute"`
	Offset   int    `json:"offset,omitempty" jsonschema:"leave out this many bytes"`
	MaxBytes *int   `json:"maxBytes,omitempty" jsonschema:"65536 if left out, at most 1048576"`
}

type readFileOutput struct {
	VMID       string `json:"vm_id"`
	Path       string `json:"path"`
	Size       int    `json:"size" jsonschema:"of the whole file, in bytes"`
	Content    string `json:"content" jsonschema:"empty if the part is no text"`
	ContentB64 string `json:"content_b64,omitempty" jsonschema:"the part, if it is no text"`
	NextOffset int    `json:"next_offset,omitempty" jsonschema:"there is more: pass it as offset"`
}

func (m *agentTools) readFile(ctx context.Context, call *mcp.Call, in readFileInput) (readFileOutput, error) {
	most := defaultOutput
	if in.MaxBytes != nil {
		most = *in.MaxBytes
	}
	if most < 1 || most > maxOutput || in.Offset < 0 {
		return readFileOutput{}, fault.Invalidf("offset is %d and maxBytes %d; 0 or more, and 1 to %d are possible", in.Offset, most, maxOutput)
	}
	out := readFileOutput{Path: in.Path}
	return filled(&out, m.with(call, func(a *App, client *api.Client) error {
		t, err := a.target(ctx, in.Target)
		if err != nil {
			return err
		}
		ctx, cancel := limit(ctx, startLimit, "reading the file")
		defer cancel()
		data, err := client.ReadFile(ctx, t.ID, in.Path)
		if err != nil {
			return err // what is missing, VM or file, is in the server's words
		}
		out.VMID, out.Size = t.ID, len(data)
		out.part(data, in.Offset, most)
		return nil
	}))
}

// part fills in the part of the file that begins at offset, whole characters of text.
func (out *readFileOutput) part(data []byte, offset, most int) {
	start := min(offset, len(data))
	end := min(start+most, len(data))
	cut := end
	for cut < len(data) && cut > start && end-cut < utf8.UTFMax && !utf8.RuneStart(data[cut]) {
		cut--
	}
	if utf8.Valid(data[start:cut]) && cut > start {
		end = cut
		out.Content = string(data[start:end])
	} else {
		out.ContentB64 = base64.StdEncoding.EncodeToString(data[start:end])
	}
	if end < len(data) {
		out.NextOffset = end
	}
}

type writeFileInput struct {
	vmInput
	Path       string  `json:"path" jsonschema:"absolute"`
	Content    *string `json:"content,omitempty" jsonschema:"the text; either this or contentB64"`
	ContentB64 *string `json:"contentB64,omitempty" jsonschema:"the bytes in base64"`
	Mode       string  `json:"mode,omitempty" jsonschema:"octal permissions; 0644 if left out"`
	CreateDirs bool    `json:"createDirs,omitempty" jsonschema:"make missing folders"`
}

type writeFileOutput struct {
	VMID string `json:"vm_id"`
	Path string `json:"path"`
	Size int    `json:"size" jsonschema:"in bytes"`
}

func (m *agentTools) writeFile(ctx context.Context, call *mcp.Call, in writeFileInput) (writeFileOutput, error) {
	out := writeFileOutput{Path: in.Path}
	req, err := in.request()
	if err != nil {
		return out, err
	}
	return filled(&out, m.with(call, func(a *App, client *api.Client) error {
		t, err := a.target(ctx, in.Target)
		if err != nil {
			return err
		}
		ctx, cancel := limit(ctx, startLimit, "writing the file")
		defer cancel()
		out.VMID, out.Size = t.ID, len(req.Content)
		return client.WriteFile(ctx, t.ID, req)
	}))
}

func (in writeFileInput) request() (api.FileRequest, error) {
	req := api.FileRequest{Path: in.Path, CreateDirs: &in.CreateDirs}
	switch {
	case (in.Content == nil) == (in.ContentB64 == nil):
		return req, fault.Invalidf("give either content or contentB64")
	case in.Content != nil:
		req.Content = []byte(*in.Content)
	default:
		data, err := base64.StdEncoding.DecodeString(*in.ContentB64)
		if err != nil {
			return req, fault.Invalidf("contentB64 is no base64: %w", err)
		}
		req.Content = data
	}
	if in.Mode != "" {
		mode, err := strconv.ParseUint(in.Mode, 8, 32)
		if err != nil {
			return req, fault.Invalidf("invalid mode %q: octal digits are expected, for example 0755", in.Mode)
		}
		number := uint32(mode)
		req.Mode = &number
	}
	return req, nil
}
