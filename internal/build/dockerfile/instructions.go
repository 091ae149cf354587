package dockerfile

import (
	"encoding/json"
	"slices"
	"strings"
)

// parsers reads what follows an instruction's name and flags.
var parsers = map[string]func(i *Instruction, rest string, heredocs []Heredoc) error{
	Run: parseRun, Cmd: parseCommand, Entrypoint: parseCommand, Shell: parseShell,
	Copy: parseCopy, Add: parseCopy,
	Env: parsePairs, Label: parsePairs, Arg: parseArg,
	Workdir: parseOne, User: parseOne, Expose: parseWords,
}

// suggestion names the instruction that a mistyped one may have been.
func suggestion(typed string) string {
	for name := range parsers {
		if len(typed) > 1 && (strings.HasPrefix(name, typed) || strings.HasPrefix(typed, name) || sameLetters(typed, name)) {
			return "; did you mean " + name + "?"
		}
	}
	return ""
}

func sameLetters(a, b string) bool {
	x, y := []byte(a), []byte(b)
	slices.Sort(x)
	slices.Sort(y)
	return string(x) == string(y)
}

// takeFlags takes --name=value words off the front.
func (i *Instruction) takeFlags(rest string) (string, error) {
	for strings.HasPrefix(rest, "--") {
		word := rest
		if end := strings.IndexAny(rest, " \t"); end >= 0 {
			word = rest[:end]
		}
		if word == "--" {
			break
		}
		rest = strings.TrimLeft(rest[len(word):], " \t")
		name, value, has := strings.Cut(word[2:], "=")
		if !slices.Contains(flags[i.Name], name) {
			return "", errorf(i.Line, "%s has no flag --%s here%s", i.Name, name, flagAdvice(i.Name))
		}
		if !has {
			value = "true"
		}
		i.Flags = append(i.Flags, Pair{Name: name, Value: value, Set: true})
		if name != "link" && (!has || value == "") {
			return "", errorf(i.Line, "the flag --%s needs a value: --%s=…", name, name)
		}
	}
	return rest, nil
}

func flagAdvice(instruction string) string {
	switch {
	case instruction == Run:
		return ": steps run in a whole machine, with its network and disk; leave it out, or build a rootfs image, whose builder knows it"
	case len(flags[instruction]) > 0:
		return "; it has --" + strings.Join(flags[instruction], ", --")
	}
	return ""
}

func isJSON(rest string) bool { return strings.HasPrefix(strings.TrimLeft(rest, " \t"), "[") }

// exec reads a JSON array of strings. What is none is text for a shell, as everywhere.
func exec(rest string) ([]string, bool) {
	if !isJSON(rest) {
		return nil, false
	}
	var raw []any
	if json.Unmarshal([]byte(rest), &raw) != nil {
		return nil, false
	}
	list := make([]string, len(raw))
	for n, v := range raw {
		text, ok := v.(string)
		if !ok || strings.ContainsRune(text, 0) {
			return nil, false
		}
		list[n] = text
	}
	return list, true
}

func parseRun(i *Instruction, rest string, heredocs []Heredoc) error {
	if len(heredocs) == 1 && heredocWord.MatchString(rest) {
		i.Script = heredocs[0].Text // the document is the script
		if strings.TrimSpace(i.Script) == "" {
			return errorf(i.Line, "RUN has an empty document: nothing to run")
		}
		return nil
	}
	if err := parseCommand(i, rest, nil); err != nil || i.JSON {
		return err
	}
	for _, h := range heredocs {
		i.Script += "\n" + h.Text + h.Name
	}
	if len(heredocs) > 0 {
		i.Script += "\n"
	}
	return nil
}

func parseCommand(i *Instruction, rest string, _ []Heredoc) error {
	if i.Words, i.JSON = exec(rest); i.JSON {
		if i.Name == Run && (len(i.Words) == 0 || i.Words[0] == "") {
			return errorf(i.Line, "RUN has an empty list: name a program")
		}
		return nil
	}
	if rest == "" {
		return errorf(i.Line, "%s needs a command", i.Name)
	}
	i.Script = rest
	return nil
}

func parseShell(i *Instruction, rest string, _ []Heredoc) error {
	if i.Words, i.JSON = exec(rest); !i.JSON || len(i.Words) == 0 || i.Words[0] == "" {
		return errorf(i.Line, `SHELL needs a list of strings, for example SHELL ["/bin/bash", "-o", "pipefail", "-c"]`)
	}
	return nil
}

func parseCopy(i *Instruction, rest string, heredocs []Heredoc) error {
	if i.Words, i.JSON = exec(rest); !i.JSON {
		i.Words = words(rest)
	}
	if len(i.Words) < 2 {
		return errorf(i.Line, "%s needs at least one source and a target", i.Name)
	}
	if len(heredocs) > 0 && i.Flag("from") != "" {
		return errorf(i.Line, "a document in the Dockerfile cannot be copied --from another stage")
	}
	i.Files = heredocs
	for n, word := range i.Words {
		if m := heredocWord.FindStringSubmatch(word); m != nil && len(heredocs) > 0 {
			i.Words[n] = "<<" + m[3]
		}
	}
	if strings.HasPrefix(i.Words[len(i.Words)-1], "<<") && len(heredocs) > 0 {
		return errorf(i.Line, "%s has no target after its document", i.Name)
	}
	for _, source := range i.Words[:len(i.Words)-1] {
		if lower := strings.ToLower(source); i.Name == Add && (strings.Contains(lower, "://") || strings.HasPrefix(lower, "git@")) {
			return errorf(i.Line, "ADD from a URL is not possible: RUN curl -o, wget or git clone, and check what came (%.200s)", source)
		}
	}
	return nil
}

// parsePairs reads NAME=value …, or the old form NAME value.
func parsePairs(i *Instruction, rest string, _ []Heredoc) error {
	list := words(rest)
	if len(list) == 0 {
		return errorf(i.Line, "%s needs NAME=value", i.Name)
	}
	if !strings.Contains(list[0], "=") {
		value := strings.TrimLeft(strings.TrimPrefix(rest, list[0]), " \t")
		if value == "" {
			return errorf(i.Line, "%s %s has no value: write %s=value", i.Name, list[0], list[0])
		}
		list = []string{list[0] + "=" + value}
	}
	for _, word := range list {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return errorf(i.Line, "%q is not NAME=value; values with spaces need quotes", word)
		}
		if i.Name == Label {
			plain, err := Expand(name, func(string) (string, bool) { return "", false })
			if err != nil || plain == "" {
				return errorf(i.Line, "%q cannot be the name of a label", name)
			}
			name = plain
		} else if !varName.MatchString(name) {
			return errorf(i.Line, "%q cannot be the name of a variable: letters, digits and '_' are possible", name)
		}
		i.Pairs = append(i.Pairs, Pair{Name: name, Value: value, Set: true})
	}
	return nil
}

func parseArg(i *Instruction, rest string, _ []Heredoc) error {
	list := words(rest)
	if len(list) == 0 {
		return errorf(i.Line, "ARG needs a name")
	}
	for _, word := range list {
		name, value, set := strings.Cut(word, "=")
		if !varName.MatchString(name) {
			return errorf(i.Line, "%q cannot be the name of a build argument: letters, digits and '_' are possible", name)
		}
		i.Pairs = append(i.Pairs, Pair{Name: name, Value: value, Set: set})
	}
	return nil
}

func parseOne(i *Instruction, rest string, _ []Heredoc) error {
	if rest == "" {
		return errorf(i.Line, "%s needs a value", i.Name)
	}
	i.Words = []string{rest}
	return nil
}

func parseWords(i *Instruction, rest string, _ []Heredoc) error {
	if i.Words = words(rest); len(i.Words) == 0 {
		return errorf(i.Line, "%s needs a value", i.Name)
	}
	return nil
}
