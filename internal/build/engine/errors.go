package engine

import "fmt"

// StepError is a step of a build that ended with a code other than 0.
type StepError struct {
	Step string // as written in the Dockerfile or build script
	Line int    // in the Dockerfile; 0 unknown
	Code int    // -1 when the engine does not tell
}

func (e *StepError) Error() string {
	where := ""
	if e.Line > 0 {
		where = fmt.Sprintf(" (line %d)", e.Line)
	}
	if e.Code < 0 {
		return fmt.Sprintf("step '%s'%s failed", e.Step, where)
	}
	return fmt.Sprintf("step '%s'%s failed: exit code %d", e.Step, where, e.Code)
}
