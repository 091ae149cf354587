package buildfs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vers/internal/fault"
)

// Problem is one thing that is wrong, or worth a warning, in a build script or its package.
type Problem struct {
	File    string `json:"file"`
	Key     string `json:"key,omitempty"` // commands[0].script_path
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Message string `json:"message"`
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Report is all that a check found, each list in the order of the file.
type Report struct {
	Faults   []Problem `json:"faults"`
	Warnings []Problem `json:"warnings"`
}

// Err is nil without faults, else a [CheckError] of kind fault.Invalid.
func (r *Report) Err() error {
	if len(r.Faults) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "%w", &CheckError{Report: *r})
}

// CheckError names all faults at once.
type CheckError struct{ Report Report }

func (e *CheckError) Error() string {
	faults := e.Report.Faults
	if len(faults) == 1 {
		return faults[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d faults:", len(faults))
	for _, p := range faults {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// sort orders by position and drops repetitions.
func (r *Report) sort() {
	for _, list := range []*[]Problem{&r.Faults, &r.Warnings} {
		slices.SortStableFunc(*list, func(a, b Problem) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Key, b.Key))
		})
		*list = slices.Compact(*list)
		if *list == nil {
			*list = []Problem{}
		}
	}
}
