//go:build linux

package cli

import (
	"github.com/spf13/cobra"

	"vers/internal/build/buildfs"
)

func (a *App) rootfsSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of build scripts, for editors",
		Long: `Print a JSON Schema of build scripts. Editors that know it complete keys, show what they mean and mark
mistakes. With Taplo or Even Better TOML, name the file in the script's first line:

  #:schema ./buildfs.schema.json`,
		Example: "  vers rootfs schema > buildfs.schema.json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, err := a.Streams.Out.Write(buildfs.JSONSchema())
			return err
		},
	}
}
