package qemu

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if IsLauncher(os.Args) {
		LauncherMain()
	}
	os.Exit(m.Run())
}
