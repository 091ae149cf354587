package buildfs

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// position is a place in the text; both count from 1. Zero is unknown.
type position struct{ line, column int }

// document is TOML with the place of every key. Keys are paths such as commands[0].env.PATH.
type document struct {
	file   string
	values map[string]any
	places map[string]position
	lines  []int // where each line begins
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// below joins a path and a key.
func below(path, key string) string {
	if !bareKey.MatchString(key) {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func element(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// parseDocument reads TOML. A text that is not TOML has one problem, the first; the rest of it means nothing.
func parseDocument(file string, text []byte) (*document, *Problem) {
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // written by some editors
	if !utf8.Valid(text) {
		return nil, &Problem{File: file, Message: "is neither a build script nor an archive: it is not UTF-8 text"}
	}
	d := &document{file: file, values: map[string]any{}, places: map[string]position{}}
	if err := toml.Unmarshal(text, &d.values); err != nil {
		return nil, syntaxProblem(file, err)
	}
	d.findPlaces(text)
	return d, nil
}

func syntaxProblem(file string, err error) *Problem {
	p := &Problem{File: file, Message: "not valid TOML: " + strings.TrimPrefix(err.Error(), "toml: ")}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		p.Line, p.Column = decode.Position()
		p.Key = strings.Join(decode.Key(), ".")
	}
	return p
}

// findPlaces walks the syntax, which toml.Unmarshal has found to be right.
func (d *document) findPlaces(text []byte) {
	d.lines = []int{0}
	for i, c := range text {
		if c == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	var p unstable.Parser
	p.Reset(text)
	tables := map[string]int{} // of arrays of tables: how many there were
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = d.header(e, tables)
		case unstable.KeyValue:
			d.keyValue(table, e)
		}
	}
}

// header gives the path of [a.b] or [[a.b]].
func (d *document) header(e *unstable.Node, tables map[string]int) string {
	path, at := "", position{}
	for keys := e.Key(); keys.Next(); {
		node := keys.Node()
		path = below(path, string(node.Data))
		if at.line == 0 {
			at = d.place(node)
		}
		if keys.IsLast() && e.Kind == unstable.ArrayTable {
			d.note(path, at)
			tables[path]++
		}
		if n := tables[path]; n > 0 {
			path = element(path, n-1)
		}
	}
	d.note(path, at)
	return path
}

func (d *document) keyValue(path string, e *unstable.Node) {
	at := position{}
	for keys := e.Key(); keys.Next(); {
		node := keys.Node()
		path = below(path, string(node.Data))
		if at.line == 0 {
			at = d.place(node)
		}
		d.note(path, at)
	}
	d.value(path, at, e.Value())
}

func (d *document) value(path string, at position, v *unstable.Node) {
	switch v.Kind {
	case unstable.InlineTable:
		for children := v.Children(); children.Next(); {
			if child := children.Node(); child.Kind == unstable.KeyValue {
				d.keyValue(path, child)
			}
		}
	case unstable.Array:
		i := 0
		for children := v.Children(); children.Next(); {
			child := children.Node()
			if child.Kind == unstable.Comment {
				continue
			}
			own := at
			if child.Raw.Length > 0 {
				own = d.place(child)
			}
			d.note(element(path, i), own)
			d.value(element(path, i), own, child)
			i++
		}
	}
}

// place is where a node begins. The parser's own Shape reads the text from its start each time.
func (d *document) place(node *unstable.Node) position {
	offset := int(node.Raw.Offset)
	line, found := slices.BinarySearch(d.lines, offset)
	if !found {
		line--
	}
	return position{line + 1, offset - d.lines[line] + 1}
}

// note keeps the first place of a path.
func (d *document) note(path string, at position) {
	if _, ok := d.places[path]; !ok {
		d.places[path] = at
	}
}

// problem is about the value at path, or about the nearest table around it.
func (d *document) problem(path, format string, args ...any) Problem {
	at := d.places[path]
	for p := path; at.line == 0 && p != ""; at = d.places[p] {
		cut := max(strings.LastIndexByte(p, '.'), strings.LastIndexByte(p, '['))
		if cut <= 0 {
			break
		}
		p = p[:cut]
	}
	return Problem{File: d.file, Key: path, Line: at.line, Column: at.column, Message: fmt.Sprintf(format, args...)}
}
