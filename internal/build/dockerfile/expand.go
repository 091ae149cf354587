package dockerfile

import (
	"fmt"
	"strings"
)

// Lookup gives the value of a variable, and whether it is set.
type Lookup func(name string) (value string, set bool)

// maxExpanded bounds what a few variables that hold each other can grow to, in bytes.
const maxExpanded = 1 << 20

// Expand removes one level of quotes from a word and puts in variables: $NAME, ${NAME}, and ${NAME:-text}, ${NAME-text},
// ${NAME:+text}, ${NAME+text}, ${NAME:?text}, ${NAME?text} as shells have them. Nothing is expanded between single quotes
// and after a backslash. A variable that is not set is empty.
func Expand(word string, lookup Lookup) (string, error) {
	e := expander{text: word, lookup: lookup, quotes: true}
	return e.all(0)
}

// ExpandText is Expand for documents: quotes are text.
func ExpandText(text string, lookup Lookup) (string, error) {
	e := expander{text: text, lookup: lookup}
	return e.all(0)
}

type expander struct {
	text   string
	at     int
	lookup Lookup
	quotes bool // quotes mean something
}

const maxDepth = 20 // of ${a:-${b:-…}}

// all expands up to the end, or up to the brace that closes depth.
func (e *expander) all(depth int) (string, error) {
	if depth > maxDepth {
		return "", fmt.Errorf("variables are nested more than %d deep", maxDepth)
	}
	var out strings.Builder
	double := false
	for e.at < len(e.text) {
		if out.Len() > maxExpanded {
			return "", fmt.Errorf("the value is longer than %d bytes", maxExpanded)
		}
		c := e.text[e.at]
		switch {
		case c == '}' && depth > 0 && !double:
			return out.String(), nil
		case c == '\'' && e.quotes && !double:
			end := strings.IndexByte(e.text[e.at+1:], '\'')
			if end < 0 {
				return "", fmt.Errorf("a single quote is not closed")
			}
			out.WriteString(e.text[e.at+1 : e.at+1+end])
			e.at += end + 2
		case c == '"' && e.quotes:
			double = !double
			e.at++
		case c == '\\':
			e.at++
			out.WriteString(e.escaped(double))
		case c == '$':
			e.at++
			value, err := e.variable(depth)
			if err != nil {
				return "", err
			}
			out.WriteString(value)
		default:
			out.WriteByte(c)
			e.at++
		}
	}
	switch {
	case double:
		return "", fmt.Errorf("a double quote is not closed")
	case depth > 0:
		return "", fmt.Errorf("a ${ is not closed by }")
	}
	return out.String(), nil
}

// escaped gives what a backslash, which was read, and what follows it stand for.
func (e *expander) escaped(double bool) string {
	if e.at == len(e.text) {
		return `\`
	}
	c := e.text[e.at]
	e.at++
	switch {
	case c == '$' || c == '\\':
		return string(c)
	case !e.quotes, double && c != '"':
		return `\` + string(c)
	}
	return string(c)
}

func nameLength(text string) int {
	n := 0
	for n < len(text) && (text[n] == '_' || text[n] >= 'a' && text[n] <= 'z' || text[n] >= 'A' && text[n] <= 'Z' || n > 0 && text[n] >= '0' && text[n] <= '9') {
		n++
	}
	return n
}

// variable expands what follows a $, which was read.
func (e *expander) variable(depth int) (string, error) {
	rest := e.text[e.at:]
	if !strings.HasPrefix(rest, "{") {
		n := nameLength(rest)
		if n == 0 {
			return "$", nil
		}
		e.at += n
		value, _ := e.lookup(rest[:n])
		return value, nil
	}
	n := nameLength(rest[1:])
	name := rest[1 : 1+n]
	if name == "" {
		return "", fmt.Errorf("%.20q names no variable", "$"+rest)
	}
	e.at += 1 + n
	value, set := e.lookup(name)
	rest = e.text[e.at:]
	if strings.HasPrefix(rest, "}") {
		e.at++
		return value, nil
	}
	operator := rest[:min(1, len(rest))]
	if operator == ":" {
		operator = rest[:min(2, len(rest))]
		set = set && value != ""
	}
	switch operator {
	case "-", "+", "?", ":-", ":+", ":?":
	default:
		return "", fmt.Errorf("${%s%.10s is not known: ${NAME}, and after the name :-, :+, :?, -, + or ? are", name, rest)
	}
	e.at += len(operator)
	word, err := e.all(depth + 1)
	if err != nil {
		return "", err
	}
	e.at++ // the closing brace
	switch operator[len(operator)-1] {
	case '+':
		if set {
			return word, nil
		}
		return "", nil
	case '?':
		if !set {
			return "", fmt.Errorf("%s is not set: %s", name, word)
		}
	case '-':
		if !set {
			return word, nil
		}
	}
	return value, nil
}
