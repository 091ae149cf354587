package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"vers/api"
)

// begin is how a command that asks the server begins: it reads the form of the output, then gives the client.
func (a *App) begin(format formatFlags, others ...string) (mode, *api.Client, error) {
	mode, err := format.mode(others...)
	if err != nil {
		return 0, nil, err
	}
	client, err := a.api()
	return mode, client, err
}

// show prints one object: its name with -q, itself as JSON, or what text writes.
func (a *App) show(mode mode, name string, object any, text func()) error {
	switch mode {
	case modeJSON, modeJSONMap:
		return printJSON(a.Streams.Out, object)
	case modeQuiet:
		fmt.Fprintln(a.Streams.Out, name)
	default:
		text()
	}
	return nil
}

// say is text for show: one line.
func (a *App) say(format string, args ...any) func() {
	return func() { fmt.Fprintf(a.Streams.Out, format+"\n", args...) }
}

// fields is text for show: lines "Name: value"; empty values are left out.
func (a *App) fields(pairs [][2]string) func() {
	return func() {
		for _, pair := range pairs {
			if pair[1] != "" {
				fmt.Fprintf(a.Streams.Out, "%s: %s\n", pair[0], a.Streams.paint(pair[0], clean(pair[1])))
			}
		}
	}
}

// listing says how to print many objects.
type listing[T any] struct {
	name    func(T) string // with -q
	heading string         // before the table, if not empty
	header  []string
	row     func(T) []string
	empty   string // instead of the table
}

// print writes the part of all that the flags ask for.
func (l listing[T]) print(a *App, mode mode, pages pageFlags, all []T) error {
	items, forJSON, hint, err := cut(pages, all)
	if err != nil {
		return err
	}
	switch mode {
	case modeJSON:
		return printJSON(a.Streams.Out, forJSON)
	case modeQuiet:
		for _, item := range items {
			fmt.Fprintln(a.Streams.Out, l.name(item))
		}
	default:
		if l.heading != "" && len(all) > 0 {
			fmt.Fprintf(a.Streams.Out, "%s\n\n", l.heading)
		}
		if len(all) == 0 {
			fmt.Fprintln(a.Streams.Out, l.empty)
			return nil
		}
		rows := make([][]string, 0, len(items))
		for _, item := range items {
			rows = append(rows, l.row(item))
		}
		a.Streams.table(l.header, rows)
	}
	if hint != "" {
		a.Streams.note("%s", hint)
	}
	return nil
}

// each does something for every name and goes on after failures. Each is reported; the result carries the code of
// the first, without a message if there was more than one name.
func (a *App) each(names []string, act func(name string) error) error {
	var first error
	for _, name := range slices.Compact(slices.Clone(names)) {
		err := act(name)
		if err == nil {
			continue
		}
		if len(names) == 1 {
			return err
		}
		var signalled *signalError
		if errors.As(err, &signalled) {
			return err
		}
		a.printError(err)
		if first == nil {
			first = &statusError{exitCode(err)}
		}
	}
	return first
}

// eachResult acts on every name like each. Text output is what act returns as line, with -q the name, as JSON the array of
// results.
func eachResult[T any](a *App, mode mode, names []string, act func(name string) (result T, line string, err error)) error {
	done := []T{}
	err := a.each(names, func(name string) error {
		result, line, err := act(name)
		if err != nil {
			return err
		}
		done = append(done, result)
		switch mode {
		case modeText:
			fmt.Fprintln(a.Streams.Out, line)
		case modeQuiet:
			fmt.Fprintln(a.Streams.Out, name)
		}
		return nil
	})
	if mode == modeJSON {
		return errors.Join(err, printJSON(a.Streams.Out, done))
	}
	return err
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
	for n, row := range all {
		var line strings.Builder
		used := 0
		for i, cell := range row {
			if room := terminal - used; i == len(row)-1 && terminal > 0 && room < utf8.RuneCountInString(cell) {
				cell = shorten(cell, max(room, 4))
			}
			padding := strings.Repeat(" ", widths[i]-min(widths[i], utf8.RuneCountInString(cell))+2)
			used += widths[i] + 2
			if n > 0 {
				cell = s.paint(header[i], cell)
			}
			line.WriteString(cell)
			line.WriteString(padding)
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
