package cli

import "github.com/spf13/cobra"

// rootfsScriptCommands work on build scripts, on this machine.
func (a *App) rootfsScriptCommands() []*cobra.Command {
	return []*cobra.Command{a.rootfsInitCommand(), a.rootfsBuildCommand(), a.rootfsCheckCommand(), a.rootfsPackCommand(), a.rootfsUnpackCommand(),
		a.rootfsSchemaCommand()}
}
