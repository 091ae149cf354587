package server

import "strings"

// unquoteScript mends commands of a client in the field that quotes every word for the shell before it joins them: a
// script given as one word arrives as one quoted word, and a "--" separator as the script's first word. It changes
// only `bash -c SCRIPT`: a leading "-- " goes, and a script that is one single-quoted word becomes what is quoted
// (spec/api.md 3.4). The price: `bash -c "'a program'"` runs `a program`.
func unquoteScript(command []string) []string {
	if len(command) != 3 || command[0] != "bash" || command[1] != "-c" {
		return command
	}
	script := strings.TrimPrefix(command[2], "-- ")
	if inner, ok := singleQuoted(script); ok {
		script = inner
	}
	return []string{"bash", "-c", script}
}

// singleQuoted gives the content of a word that is quoted as a whole. Inside, `'\”` is how the shell spells a quote.
func singleQuoted(word string) (string, bool) {
	const quote, escaped = "'", `'\''`
	if len(word) <= 2 || !strings.HasPrefix(word, quote) || !strings.HasSuffix(word, quote) {
		return "", false
	}
	if strings.Contains(strings.ReplaceAll(word[1:len(word)-1], escaped, ""), quote) {
		return "", false
	}
	return strings.ReplaceAll(word[1:len(word)-1], escaped, quote), true
}
