package main

import (
	"bytes"
	"io"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/openshift/imagebuilder/dockerfile/command"
	"github.com/openshift/imagebuilder/dockerfile/parser"
)

// stepLog passes the log on and remembers the last step that buildah announced, to say where a failure is.
type stepLog struct {
	w           io.Writer
	line        []byte // of the log, not ended yet
	stage, step int    // counted from 1; stage 0 is the only one
	text        string
	signal      int // that ended the last step; 0 none
	// remote: a step may have added something that is not in the folder.
	remote bool
}

const longestStep = 2048 // bytes of a step that are looked at, at least

var announcement = regexp.MustCompile(`^(?:\[(\d+)/\d+\] )?STEP (\d+)(?:/\d+)?: (.*)$`)

func (l *stepLog) Write(p []byte) (int, error) {
	rest := p
	for {
		before, after, ended := bytes.Cut(rest, []byte("\n"))
		if len(l.line) < 2*longestStep {
			l.line = append(l.line, before...)
		}
		if !ended {
			break
		}
		if match := announcement.FindSubmatch(l.line); match != nil {
			l.stage, _ = strconv.Atoi(string(match[1]))
			l.step, _ = strconv.Atoi(string(match[2]))
			l.text, l.signal = string(match[3]), 0
			l.remote = l.remote || addsRemote(l.text)
		}
		if name, ok := bytes.CutPrefix(l.line, []byte("container exited on ")); ok {
			l.signal = signalNumber(string(name))
		}
		l.line, rest = l.line[:0], after
	}
	return l.w.Write(p)
}

// addsRemote recognises ADD of a URL or a repository, also one that a variable may stand for. Other instructions take
// nothing from the network that their cache would notice.
func addsRemote(step string) bool {
	words := strings.Fields(step)
	return len(words) > 0 && strings.EqualFold(words[0], command.Add) &&
		(strings.ContainsAny(step, "$@\\") || strings.Contains(step, "://") || strings.Contains(step, "github.com/") || len(step) > longestStep)
}

// locate finds the last announced step in the Dockerfile. The step's own output could look like an announcement, so what
// is found there must agree with it.
func (l *stepLog) locate(dockerfile []byte) (string, int) {
	result, err := parser.Parse(bytes.NewReader(dockerfile))
	if err != nil {
		return l.text, 0
	}
	stage, step := 0, 0
	for _, node := range result.AST.Children {
		switch {
		case strings.EqualFold(node.Value, command.From):
			stage, step = stage+1, 1
		case stage > 0:
			step++
		}
		if stage == max(l.stage, 1) && step == l.step && sameInstruction(node.Original, l.text) {
			return l.text, node.StartLine
		}
	}
	return l.text, 0
}

func sameInstruction(a, b string) bool {
	first := func(s string) string { word, _, _ := strings.Cut(strings.TrimSpace(s), " "); return word }
	return strings.EqualFold(first(a), first(b))
}

// signalNumber is the signal that has this name in buildah's messages; 0 if none has.
func signalNumber(name string) int {
	for signal := syscall.Signal(1); signal < 32; signal++ {
		if signal.String() == name {
			return int(signal)
		}
	}
	return 0
}
