//go:build !linux

package cli

import (
	"github.com/spf13/cobra"

	"vers/internal/fault"
)

// rootfsScriptCommands say that file systems of build scripts are made on Linux: owners, devices and attributes of a file
// system need it.
func (a *App) rootfsScriptCommands() []*cobra.Command {
	var all []*cobra.Command
	for _, name := range []string{"init", "build", "check", "pack", "unpack", "schema"} {
		all = append(all, needsLinux(name))
	}
	return all
}

func (a *App) buildfsCommand() *cobra.Command { return needsLinux("buildfs") }

func needsLinux(name string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: "Needs Linux", Example: "  vers exec dev vers rootfs " + name, DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return fault.Unavailablef("'%s' of build scripts needs Linux: run it in a VM, or build a Dockerfile on the server with 'vers build'", name)
		},
	}
}
