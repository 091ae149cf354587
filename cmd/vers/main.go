// Command vers is the command line of vers: git for running machines. See internal/cli.
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"vers/internal/cli"
)

// Set by the linker (Makefile).
var (
	version = "dev"
	commit  = "unknown"
)

func main() {
	app, err := cli.New(build())
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
	os.Exit(app.Main(os.Args[1:]))
}

// build describes this binary with what the Go tool recorded in it.
func build() cli.Build {
	b := cli.Build{Version: version, Commit: commit, Date: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			if commit == "unknown" {
				b.Commit = setting.Value
			}
		case "vcs.time":
			b.Date = setting.Value
		}
	}
	return b
}
