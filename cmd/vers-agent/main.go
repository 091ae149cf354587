// Command vers-agent runs inside every guest: as /init of the initramfs it starts the machine, then it answers versd.
package main

import (
	"fmt"
	"os"

	"vers/internal/agent/boot"
)

// version is set by the linker.
var version = "dev"

func main() {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "--version":
		fmt.Println("vers-agent", version)
	case len(os.Args) > 1 && os.Args[1] == "serve":
		fmt.Fprintln(os.Stderr, "vers-agent:", boot.Serve(version))
		os.Exit(1)
	case os.Getpid() == 1:
		boot.Fail(boot.Run())
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "vers-agent is the first process of a vers guest. It does nothing elsewhere.")
		os.Exit(2)
	}
}
