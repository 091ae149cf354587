package dockerfile

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"vers/internal/fault"
)

// line is an instruction as text: continued lines joined, comments gone, its heredocs taken out of what follows it.
type line struct {
	number   int
	text     string
	heredocs []Heredoc
}

func itoa(n int) string { return strconv.Itoa(n) }

var directive = regexp.MustCompile(`^#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*$`)

// split makes instructions of a file's lines.
func split(data []byte) ([]line, error) {
	switch {
	case len(data) > maxBytes:
		return nil, fault.Invalidf("the Dockerfile has %d bytes; at most %d are possible", len(data), maxBytes)
	case !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0:
		return nil, fault.Invalidf("the Dockerfile is no UTF-8 text")
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	r := reader{raw: strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n"), escape: '\\'}
	if err := r.directives(); err != nil {
		return nil, err
	}
	var lines []line
	for {
		l, ok, err := r.next()
		if err != nil || !ok {
			return lines, err
		}
		lines = append(lines, l)
	}
}

// reader goes through the lines of a file.
type reader struct {
	raw    []string
	at     int // next line
	escape byte
}

// directives reads what comments at the very top say about the file itself.
func (r *reader) directives() error {
	seen := map[string]bool{}
	for i, text := range r.raw {
		found := directive.FindStringSubmatch(strings.TrimSpace(text))
		if found == nil {
			return nil
		}
		name := strings.ToLower(found[1])
		if seen[name] {
			return errorf(i+1, "the directive %s stands here twice", name)
		}
		seen[name] = true
		if name != "escape" {
			continue // syntax and check are for other builders
		}
		if found[2] != `\` && found[2] != "`" {
			return errorf(i+1, "the escape character %q is not possible: \\ and ` are", found[2])
		}
		r.escape = found[2][0]
	}
	return nil
}

func isComment(text string) bool { return strings.HasPrefix(strings.TrimLeft(text, " \t"), "#") }

// next gives the next instruction; ok is false at the end.
func (r *reader) next() (l line, ok bool, err error) {
	for r.at < len(r.raw) && (strings.TrimSpace(r.raw[r.at]) == "" || isComment(r.raw[r.at])) {
		r.at++
	}
	if r.at == len(r.raw) {
		return l, false, nil
	}
	l.number = r.at + 1
	var text strings.Builder
	for r.at < len(r.raw) {
		part := r.raw[r.at]
		r.at++
		if text.Len() > 0 && (isComment(part) || strings.TrimSpace(part) == "") {
			continue // between continued lines
		}
		trimmed := strings.TrimRight(part, " \t")
		if !strings.HasSuffix(trimmed, string(r.escape)) {
			text.WriteString(part)
			break
		}
		text.WriteString(trimmed[:len(trimmed)-1])
	}
	l.text = strings.TrimSpace(text.String())
	if l.text == "" {
		return l, true, errorf(l.number, "there is nothing to continue")
	}
	l.heredocs, err = r.heredocs(l)
	return l, true, err
}

// heredocWord is a redirection from a document in the file, as shells know it: <<EOF, 3<<-"EOF".
var heredocWord = regexp.MustCompile(`^[0-9]*<<(-?)(["']?)([A-Za-z0-9_.]+)(["']?)$`)

// heredocs takes the documents of an instruction from the lines after it.
func (r *reader) heredocs(l line) ([]Heredoc, error) {
	keyword, rest, _ := strings.Cut(l.text, " ")
	switch strings.ToUpper(keyword) {
	case Run, Copy, Add:
	default:
		return nil, nil
	}
	if isJSON(rest) {
		return nil, nil
	}
	var found []Heredoc
	for _, word := range words(rest) {
		m := heredocWord.FindStringSubmatch(word)
		if m == nil || m[2] != m[4] {
			continue
		}
		h := Heredoc{Name: m[3], Expand: m[2] == "", tabs: m[1] == "-"}
		var text strings.Builder
		for {
			if r.at == len(r.raw) {
				return nil, errorf(l.number, "the document <<%s does not end: a line that is just %s is missing", h.Name, h.Name)
			}
			part := r.raw[r.at]
			r.at++
			if h.tabs {
				part = strings.TrimLeft(part, "\t")
			}
			if part == h.Name {
				break
			}
			text.WriteString(part + "\n")
		}
		h.Text = text.String()
		found = append(found, h)
	}
	return found, nil
}

// words splits at white space outside of quotes; quotes and escapes stay in the words.
func words(text string) []string {
	var list []string
	var word strings.Builder
	var quoted byte
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && quoted != '\'' && i+1 < len(text):
			word.WriteByte(c)
			i++
			c = text[i]
		case quoted != 0:
			if c == quoted {
				quoted = 0
			}
		case c == '"' || c == '\'':
			quoted = c
		case c == ' ' || c == '\t' || c == '\n':
			if word.Len() > 0 {
				list = append(list, word.String())
				word.Reset()
			}
			continue
		}
		word.WriteByte(c)
	}
	if word.Len() > 0 {
		list = append(list, word.String())
	}
	return list
}

// quote makes one word of any text.
func quote(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(text) + `"`
}

// oneLine is an instruction as it is shown.
func oneLine(name, rest string, heredocs []Heredoc) string {
	text := name
	if fields := strings.Fields(rest); len(fields) > 0 {
		text += " " + strings.Join(fields, " ")
	}
	for _, h := range heredocs {
		first, _, more := strings.Cut(strings.TrimSpace(h.Text), "\n")
		if more {
			first += " …"
		}
		text += " (" + first + ")"
	}
	return text
}
