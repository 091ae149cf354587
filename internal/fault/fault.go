// Package fault defines the few kinds of error that callers act on. They are mapped once to HTTP statuses
// (internal/server) and once to exit codes (internal/cli). Everything else is an internal error.
package fault

import (
	"errors"
	"fmt"
)

// Kind says what a caller can do about an error.
type Kind int

// The kinds. Internal is the zero value: a fault of ours, nothing the caller can mend.
const (
	Internal        Kind = iota // a fault of the server
	NotFound                    // the object does not exist, or belongs to somebody else
	Conflict                    // a name is taken, an object is in use, or its state forbids the operation
	Invalid                     // the request makes no sense, whatever the state
	Unauthenticated             // no key, or an unknown one
	Forbidden                   // the key is known, the object visible, the action not allowed
	Exhausted                   // the host or a quota cannot give what was asked
	Unavailable                 // try again later, or something the host lacks
	Timeout                     // a limit set by the caller or the server ran out
)

var names = map[Kind]string{
	Internal: "internal", NotFound: "not found", Conflict: "conflict", Invalid: "invalid",
	Unauthenticated: "unauthenticated", Forbidden: "forbidden", Exhausted: "exhausted",
	Unavailable: "unavailable", Timeout: "time limit",
}

func (k Kind) String() string { return names[k] }

// Error is an error with a kind. Its message says what, which, why and what to do.
type Error struct {
	Kind  Kind
	msg   string
	cause error
}

func (e *Error) Error() string { return e.msg }

// Unwrap gives the cause, if the message was made with %w.
func (e *Error) Unwrap() error { return e.cause }

// New makes an error of a kind. The format may hold %w.
func New(kind Kind, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, msg: err.Error(), cause: errors.Unwrap(err)}
}

// NotFoundf, Conflictf and the others are shorthands for New.
func NotFoundf(format string, args ...any) error    { return New(NotFound, format, args...) }
func Conflictf(format string, args ...any) error    { return New(Conflict, format, args...) }
func Invalidf(format string, args ...any) error     { return New(Invalid, format, args...) }
func Forbiddenf(format string, args ...any) error   { return New(Forbidden, format, args...) }
func Exhaustedf(format string, args ...any) error   { return New(Exhausted, format, args...) }
func Unavailablef(format string, args ...any) error { return New(Unavailable, format, args...) }

// KindOf finds the kind of the outermost Error in err's chain; Internal if there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is of kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
