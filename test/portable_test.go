package test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The command line runs where developers are; only the server needs Linux. One other system stands for all: it takes most of
// a minute to compile everything anew.
func TestCommandLineIsPortable(t *testing.T) {
	for _, system := range []string{"darwin/arm64"} {
		cmd := exec.Command("go", "build", "-o", os.DevNull, "vers/cmd/vers")
		goos, arch, _ := strings.Cut(system, "/")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", system, err, out)
		}
	}
}
