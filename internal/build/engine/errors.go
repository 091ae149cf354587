package engine

import (
	"fmt"
	"slices"
	"strings"

	"vers/internal/fault"
)

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

// RegistryFault is the kind of an error about an image, by the words that registries and engines have for it; Internal if
// it is none of those.
func RegistryFault(text string) fault.Kind {
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(text, word) })
	}
	switch {
	case has("unauthorized", "authentication required", "invalid username/password", "no basic auth credentials"):
		return fault.Forbidden
	case has("manifest unknown", "name unknown", "not found", "No such image", "not known", "does not exist", "access to the resource is denied",
		"pull access denied"):
		return fault.NotFound
	case has("dial tcp", "pinging container registry", "i/o timeout", "connection refused", "Client.Timeout"):
		return fault.Unavailable
	}
	return fault.Internal
}
