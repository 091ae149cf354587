package machine_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// When all tests are done, no goroutine of ours may be left.
func TestMain(m *testing.M) {
	code := m.Run()
	left := ours()
	for end := time.Now().Add(10 * time.Second); len(left) > 0 && time.Now().Before(end); left = ours() {
		time.Sleep(10 * time.Millisecond) // one that is on its way out cannot be waited on
	}
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "%d goroutines are left:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
		code = 1
	}
	os.Exit(code)
}

// ours gives the stacks of all goroutines but this one that are in code of this module.
func ours() []string {
	buf := make([]byte, 16<<20)
	var found []string
	for i, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if i > 0 && strings.Contains(stack, "vers/internal/") {
			found = append(found, stack)
		}
	}
	return found
}
