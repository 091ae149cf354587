package cli

import (
	"encoding/json"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// contextVersion is the version of agent-context's form. It grows when a field changes its meaning or goes.
const contextVersion = 1

// agentContext describes the whole program to programs.
type agentContext struct {
	SchemaVersion int              `json:"schema_version"`
	Name          string           `json:"name"`
	Version       string           `json:"version"`
	Description   string           `json:"description"`
	ExitCodes     map[string]int   `json:"exit_codes"`
	GlobalFlags   []contextFlag    `json:"global_flags"`
	Commands      []contextCommand `json:"commands"`
}

type contextCommand struct {
	Path     string        `json:"path"` // "repo tag create"
	Usage    string        `json:"usage"`
	Aliases  []string      `json:"aliases"`
	Short    string        `json:"short"`
	Long     string        `json:"long,omitempty"`
	Examples string        `json:"examples,omitempty"`
	Flags    []contextFlag `json:"flags"`
}

type contextFlag struct {
	Name      string `json:"name"`
	Shorthand string `json:"shorthand,omitempty"`
	Type      string `json:"type"`
	Default   string `json:"default,omitempty"`
	Usage     string `json:"usage"`
}

func (a *App) agentContextCommand() *cobra.Command {
	var pretty bool
	cmd := &cobra.Command{
		Use: "agent-context", Short: "Describe all commands and flags as JSON, for agents",
		Long:    "Print a versioned JSON description of all commands, arguments and flags. It needs no server and no key.",
		Example: "  vers agent-context --pretty",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			encoder := json.NewEncoder(a.Streams.Out)
			encoder.SetEscapeHTML(false)
			if pretty {
				encoder.SetIndent("", "  ")
			}
			return encoder.Encode(a.agentContext(cmd.Root()))
		},
	}
	cmd.Flags().BoolVar(&pretty, "pretty", false, "with line breaks and indentation")
	return cmd
}

func (a *App) agentContext(root *cobra.Command) agentContext {
	c := agentContext{
		SchemaVersion: contextVersion, Name: "vers", Version: a.Build.Version, Description: root.Short,
		ExitCodes: map[string]int{
			"success": exitOK, "failure": exitFailure, "not_logged_in": exitAuth, "not_found": exitNotFound,
			"conflict": exitConflict, "bad_input": exitInvalid, "timed_out": exitTimeout, "declined": exitDeclined,
		},
		GlobalFlags: contextFlags(root.PersistentFlags()), Commands: []contextCommand{},
	}
	for _, cmd := range commands(root) {
		c.Commands = append(c.Commands, contextCommand{
			Path: cmd.CommandPath()[len("vers "):], Usage: cmd.UseLine(), Aliases: append([]string{}, cmd.Aliases...),
			Short: cmd.Short, Long: cmd.Long, Examples: cmd.Example, Flags: contextFlags(cmd.LocalNonPersistentFlags()),
		})
	}
	return c
}

// commands gives all commands below cmd that users are meant to see, each before its subcommands.
func commands(cmd *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, child := range cmd.Commands() {
		if child.IsAvailableCommand() && child.Name() != "help" {
			all = append(append(all, child), commands(child)...)
		}
	}
	return all
}

func contextFlags(set *pflag.FlagSet) []contextFlag {
	flags := []contextFlag{}
	set.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			flags = append(flags, contextFlag{f.Name, f.Shorthand, f.Value.Type(), f.DefValue, f.Usage})
		}
	})
	return flags
}
