package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

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

func (f *formatFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.format, "format", "", "output format: json")
	cmd.Flags().BoolVar(&f.json, "json", false, "same as --format json")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *formatFlags) addQuiet(cmd *cobra.Command, help string) {
	f.add(cmd)
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, help)
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

// table writes rows in columns at least two spaces apart. If the terminal is too narrow the last column is cut.
func (s *Streams) table(header []string, rows [][]string) {
	widths := make([]int, len(header))
	all := append([][]string{header}, rows...)
	for _, row := range all {
		for i, cell := range row {
			row[i] = clean(cell)
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	terminal := s.Width()
	for _, row := range all {
		var line strings.Builder
		for i, cell := range row {
			if i == len(row)-1 {
				if room := terminal - utf8.RuneCountInString(line.String()); terminal > 0 && room < utf8.RuneCountInString(cell) {
					cell = shorten(cell, max(room, 4))
				}
				line.WriteString(cell)
				break
			}
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
		fmt.Fprintln(s.Out, strings.TrimRight(line.String(), " "))
	}
}

// shorten cuts text to width runes, marking the cut.
func shorten(text string, width int) string {
	runes := []rune(text)
	if len(runes) <= width {
		return text
	}
	return string(runes[:max(width-1, 0)]) + "…"
}

// when shows a time to people.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// whenText is when for times that the API gives as text.
func whenText(s string) string {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return s
	}
	return when(t)
}

// text gives an optional string, or a dash.
func text(s *string) string {
	if s == nil || *s == "" {
		return "-"
	}
	return clean(*s)
}
