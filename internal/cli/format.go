package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vers/internal/fault"
)

// mode is the form of the output.
type mode int

const (
	modeText mode = iota
	modeQuiet
	modeJSON
	modeJSONMap // env list only
)

// formatFlags are --format, --json and, where it exists, -q.
type formatFlags struct {
	format string
	json   bool
	quiet  bool
}

// add adds the flags of a command whose result has an id or name.
func (f *formatFlags) add(cmd *cobra.Command) { f.addQuiet(cmd, "print the id or name only") }

// addQuiet is add with words for -q.
func (f *formatFlags) addQuiet(cmd *cobra.Command, help string) {
	f.addJSON(cmd)
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, help)
}

// addJSON is add without -q.
func (f *formatFlags) addJSON(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.format, "format", "", "output format: json")
	cmd.Flags().BoolVar(&f.json, "json", false, "same as --format json")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp))
}

// mode decides the form: -q beats JSON, anything but json is bad input.
func (f *formatFlags) mode(others ...string) (mode, error) {
	result := modeText
	switch {
	case f.format == "json":
		result = modeJSON
	case len(others) > 0 && f.format == others[0]:
		result = modeJSONMap
	case f.format != "":
		return 0, fault.Invalidf("unknown output format %q; the only value is json", f.format)
	case f.json:
		result = modeJSON
	}
	if f.quiet {
		result = modeQuiet
	}
	return result, nil
}

// printJSON writes value with two spaces of indentation and a newline at the end.
func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// pageFlags are --limit and --offset of lists, applied here and not by the server.
type pageFlags struct{ limit, offset int }

func (p *pageFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&p.limit, "limit", 0, "show at most this many (0 = all)")
	cmd.Flags().IntVar(&p.offset, "offset", 0, "leave out this many from the start")
}

// page is a cut list in JSON. Uncut lists are plain arrays, so that jq '.[]' keeps its meaning.
type page[T any] struct {
	Items      []T    `json:"items"`
	Total      int    `json:"total"`
	Limit      int    `json:"limit"`
	Offset     int    `json:"offset"`
	Truncated  bool   `json:"truncated"`
	NextOffset int    `json:"next_offset"`
	Hint       string `json:"hint"`
}

// cut applies the flags to all. The second result is what JSON output shows.
func cut[T any](p pageFlags, all []T) (items []T, forJSON any, hint string, err error) {
	if p.limit < 0 || p.offset < 0 {
		return nil, nil, "", fault.Invalidf("--limit and --offset must not be negative")
	}
	items = all[min(p.offset, len(all)):]
	if p.limit == 0 || len(items) <= p.limit {
		if items == nil {
			items = []T{}
		}
		return items, items, "", nil
	}
	items = items[:p.limit]
	next := p.offset + p.limit
	hint = fmt.Sprintf("%d of %d shown; go on with --offset %d", len(items), len(all), next)
	return items, page[T]{items, len(all), p.limit, p.offset, true, next, hint}, hint, nil
}
