// versd is the vers server.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"vers/internal/qemu"
)

// Set by the linker (Makefile).
var (
	version = "dev"
	commit  = "unknown"
)

func main() {
	if qemu.IsLauncher(os.Args) { // this process is about to become a confined QEMU
		qemu.LauncherMain()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "versd:", err)
		os.Exit(1)
	}
}
