//go:build linux

package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"vers/internal/build/buildfs"
	"vers/internal/fault"
)

func (a *App) rootfsInitCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "init [path]", Short: "Write a commented build script",
		Long: `Write an example of a build script, with comments, to build.toml or the path given. A file that exists
stays as it is.`,
		Example: "  vers rootfs init\n  vers rootfs init images/web/build.toml",
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE:    func(_ *cobra.Command, args []string) error { return a.rootfsInit(optional(args), format) },
	}
	format.addQuiet(cmd, "print the path only")
	return cmd
}

func (a *App) rootfsInit(shown string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	if shown == "" {
		shown = "build.toml"
	}
	path := a.inDir(shown)
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path, shown = filepath.Join(path, "build.toml"), filepath.Join(shown, "build.toml")
	}
	created, err := createFile(path, buildfs.Example)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fault.NotFoundf("cannot write %s: the folder %s does not exist", shown, filepath.Dir(shown))
	case err != nil:
		return fmt.Errorf("write the example: %w", err)
	case !created:
		return fault.Conflictf("%s exists already and is left as it is; name another path", shown)
	}
	return a.show(mode, shown, map[string]string{"path": path}, a.say("✓ %s written; check it with: vers rootfs check %s", shown, shown))
}

// inDir makes a path that a user typed independent of the working folder.
func (a *App) inDir(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(a.Dir, path)
}
