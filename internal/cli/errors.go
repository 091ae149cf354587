package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"syscall"

	"vers/api"
	"vers/internal/fault"
)

// Exit codes (spec/cli.md 2.4). exec ends with the remote command's own code instead.
const (
	exitOK        = 0
	exitFailure   = 1
	exitAuth      = 2
	exitNotFound  = 3
	exitConflict  = 4
	exitInvalid   = 5
	exitTimeout   = 6
	exitDeclined  = 7
	exitInterrupt = 128 // plus the signal's number
)

const exitCodesHelp = `Exit codes:
  0  success              4  conflict: a name is taken, an object is in use
  1  general failure      5  bad input
  2  not logged in        6  timed out
  3  not found            7  you declined`

// usageError is a mistake in the arguments; the usage is shown after it.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// statusError ends the program with a code and no message.
type statusError struct{ code int }

func (e *statusError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// signalError is the cause of a context that ended because of a signal.
type signalError struct{ signal os.Signal }

// Signal is the signal's name in SSH and in the API; "" if it has none there.
func (e *signalError) Signal() string {
	return map[os.Signal]string{os.Interrupt: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP"}[e.signal]
}

func (e *signalError) Error() string { return "interrupted by " + e.signal.String() }

// errDeclined says that the user answered no.
var errDeclined = errors.New("Operation cancelled") //nolint:staticcheck // fixed wording, spec/cli.md 8.5

// withMessage keeps the code of err and changes what is said.
type withMessage struct {
	message string
	err     error
}

func (e *withMessage) Error() string { return e.message }
func (e *withMessage) Unwrap() error { return e.err }

func rewordf(err error, format string, args ...any) error {
	return &withMessage{message: fmt.Sprintf(format, args...), err: err}
}

var faultCodes = map[fault.Kind]int{
	fault.NotFound: exitNotFound, fault.Conflict: exitConflict, fault.Invalid: exitInvalid,
	fault.Unauthenticated: exitAuth, fault.Forbidden: exitAuth, fault.Timeout: exitTimeout,
}

var statusCodes = map[int]int{
	http.StatusBadRequest: exitInvalid, http.StatusRequestEntityTooLarge: exitInvalid, http.StatusUnprocessableEntity: exitInvalid,
	http.StatusUnauthorized: exitAuth, http.StatusForbidden: exitAuth, http.StatusNotFound: exitNotFound,
	http.StatusConflict: exitConflict, http.StatusRequestTimeout: exitTimeout, http.StatusGatewayTimeout: exitTimeout,
}

// exitCode maps an error to the code the program ends with. Only types and statuses count, never the text.
func exitCode(err error) int {
	var (
		status    *statusError
		signalled *signalError
		usage     *usageError
		response  *api.ResponseError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return status.code
	case errors.As(err, &signalled):
		if number, ok := signalled.signal.(syscall.Signal); ok {
			return exitInterrupt + int(number)
		}
		return exitFailure
	case errors.Is(err, context.Canceled):
		return exitInterrupt + int(syscall.SIGINT)
	case errors.As(err, &usage):
		return exitInvalid
	case errors.Is(err, errDeclined):
		return exitDeclined
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.As(err, &response):
		if code, ok := statusCodes[response.Status]; ok {
			return code
		}
		return exitFailure
	}
	if code, ok := faultCodes[fault.KindOf(err)]; ok {
		return code
	}
	return exitFailure
}

// explain gives the lines shown for an error.
func (a *App) explain(err error) string {
	var connect *api.ConnectError
	switch {
	case errors.As(err, &connect) && connect.Refused:
		return fmt.Sprintf("no server answers at %s (%v): start one with 'versd' or 'make up', or name another with --url or VERS_URL",
			connect.Address, connect.Err)
	case errors.Is(err, context.DeadlineExceeded):
		if err.Error() == context.DeadlineExceeded.Error() {
			return "timed out waiting for the server"
		}
		return err.Error()
	}
	return err.Error()
}

// advice is a second line for errors whose remedy is always the same.
func (a *App) advice(err error) string {
	if exitCode(err) != exitAuth {
		return ""
	}
	if api.StatusOf(err) == http.StatusForbidden {
		return "The key is not allowed to do this. Log in with another one: vers login --token <key>"
	}
	return "Log in with: vers login --token <key>, or ask for a key with: vers signup   (or set VERS_API_KEY; versd prints a key on its first start)"
}
