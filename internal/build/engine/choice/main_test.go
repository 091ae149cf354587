package choice

import (
	"os"
	"testing"

	"vers/internal/build/engine/enginetest"
)

func TestMain(m *testing.M) {
	enginetest.Main()
	os.Exit(m.Run())
}
