package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// Streams are the three standard streams. What they are connected to is decided once, here.
type Streams struct {
	In  io.Reader
	Out io.Writer // results only
	Err io.Writer // warnings, progress, errors

	InTTY, OutTTY, ErrTTY bool

	// Colour says whether Out may be coloured.
	Colour bool
	// Terminal is the file behind In when that is a terminal, for raw mode; nil otherwise.
	Terminal *os.File
	// Width gives the columns of the terminal behind Out; 0: not a terminal, do not cut.
	Width func() int

	lines *bufio.Reader // In, while questions are asked
}

// SystemStreams are the process's own.
func SystemStreams() *Streams {
	s := &Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Width: func() int { return 0 }}
	s.InTTY = term.IsTerminal(int(os.Stdin.Fd()))
	s.OutTTY = term.IsTerminal(int(os.Stdout.Fd()))
	s.ErrTTY = term.IsTerminal(int(os.Stderr.Fd()))
	s.Colour = s.OutTTY && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	if s.InTTY {
		s.Terminal = os.Stdin
	}
	if s.OutTTY {
		s.Width = func() int {
			width, _, err := term.GetSize(int(os.Stdout.Fd()))
			if err != nil {
				return 0
			}
			return width
		}
	}
	return s
}

// note writes a line for the user to stderr.
func (s *Streams) note(format string, args ...any) { fmt.Fprintf(s.Err, format+"\n", args...) }

// ask writes a question to stderr and reads the answer's line.
func (s *Streams) ask(question string) (string, error) {
	fmt.Fprint(s.Err, question)
	if s.lines == nil {
		s.lines = bufio.NewReader(s.In)
	}
	line, err := s.lines.ReadString('\n')
	if err == io.EOF {
		fmt.Fprintln(s.Err)
		err = nil
	}
	return strings.TrimSpace(line), err
}

var frames = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

// progress shows on a terminal that something is under way, until the returned function is called. In pipes it is
// silent. Nothing appears for work that is over at once.
func (s *Streams) progress(format string, args ...any) (stop func()) {
	text := fmt.Sprintf(format, args...)
	return s.progressOf(func() string { return text })
}

// progressOf is progress with a text that changes.
func (s *Streams) progressOf(text func() string) (stop func()) {
	if !s.ErrTTY {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		start := time.Now()
		tick := time.NewTicker(120 * time.Millisecond)
		defer tick.Stop()
		shown := false
		for i := 0; ; i++ {
			select {
			case <-done:
				if shown {
					fmt.Fprint(s.Err, "\r\x1b[K")
				}
				return
			case <-tick.C:
				shown = true
				seconds := ""
				if past := time.Since(start); past >= 2*time.Second {
					seconds = fmt.Sprintf(" %ds", int(past.Seconds()))
				}
				fmt.Fprintf(s.Err, "\r\x1b[K%s %s%s", frames[i%len(frames)], text(), seconds)
			}
		}
	}()
	var once sync.Once
	return func() {
		once.Do(func() {
			close(done)
			<-ended
		})
	}
}

// clean makes text from the server safe for a terminal: one line, no control characters.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0:
			return -1
		}
		return r
	}, text)
}

// Colours of a terminal, as the parameter of SGR.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
	bold   = "1"
)

// colours are those of values, by the name of their field or column in lower case.
var colours = map[string]map[string]string{
	"state": {"running": green, "booting": cyan, "paused": yellow, "sleeping": yellow, "dead": red, "failed": red, "complete": green},
}

// paint colours a value where its field has colours.
func (s *Streams) paint(field, value string) string {
	return s.colour(colours[strings.ToLower(field)][value], value)
}

// colour gives text in a colour, if there are colours.
func (s *Streams) colour(code, text string) string {
	if !s.Colour || code == "" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}
