package cli

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vers/internal/fault"
)

const rootLong = `vers is git for running machines. A VM can be branched while it runs, with memory, processes and
disk; committed to an immutable snapshot; restored any number of times; and named repo:tag.

A VM is named by an alias of this machine, by its id, or by a unique beginning of its id (at least
4 hex digits). Where the VM may be left out, HEAD is used: the VM that the last run, run-commit or
checkout in this folder chose.`

const rootExample = `  vers run --vm-alias dev            # start a VM and call it dev
  vers connect                       # a shell in it
  vers commit                        # keep its state: memory, processes, disk
  vers branch --count 3              # three copies that go on from here
  vers repo create app
  vers repo tag create app latest <commit>
  vers run-commit app:latest --ref   # the same state again, anywhere`

// rootCommand builds the whole command tree.
func (a *App) rootCommand() *cobra.Command {
	var version, details bool
	root := &cobra.Command{
		Use: "vers", Short: "git for running machines", Long: rootLong, Example: rootExample,
		SilenceErrors: true, SilenceUsage: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if name := cmd.Name(); name != "login" && name != "signup" { // a project's file must not say whom a key is for
				a.loadDotEnv()
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case details:
				return a.printBuild()
			case version:
				fmt.Fprintln(a.Streams.Out, a.Build.Version)
				return nil
			}
			return cmd.Help()
		},
	}
	root.SetIn(a.Streams.In)
	root.SetOut(a.Streams.Out)
	root.SetErr(a.Streams.Err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.SetHelpTemplate(helpTemplate)
	root.SuggestionsMinimumDistance = 2

	root.Flags().BoolVar(&version, "version", false, "print the version")
	root.Flags().BoolVar(&details, "VVersion", false, "print details of the build as JSON")
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "V", false, "say on stderr what is sent to the server")
	root.PersistentFlags().StringVar(&a.url, "url", "", "server: http://, https:// or unix:/// address")
	root.PersistentFlags().StringVar(&a.configFile, "config", "", "project file (default vers.toml)")

	add := func(id, name string, commands ...*cobra.Command) {
		root.AddGroup(&cobra.Group{ID: id, Title: name + ":"})
		for _, command := range commands {
			command.GroupID = id
			root.AddCommand(command)
		}
	}
	add("project", "Project", a.initCommand(), a.runCommand(), a.runCommitCommand(), a.upCommand(), a.buildCommand(), a.rootfsCommand(), a.buildfsCommand(), a.deployCommand())
	add("tree", "Tree", a.branchCommand(), a.commitCommand(), a.checkoutCommand(), a.headCommand(), a.aliasCommand(),
		a.treeCommand(), a.historyCommand(), a.diffCommand(), a.tagCommand(), a.repoCommand())
	add("vm", "VMs", a.statusCommand(), a.infoCommand(), a.egressCommand(), a.pauseCommand(), a.resumeCommand(), a.sleepCommand(), a.ttlCommand(), a.resizeCommand(), a.renameCommand(), a.deleteCommand())
	add("access", "Access", a.connectCommand(), a.execCommand(), a.logsCommand(), a.copyCommand(), a.tunnelCommand(), a.openCommand(),
		a.domainCommand(), a.sshConfigCommand(), a.sshProxyCommand())
	add("account", "Account", a.loginCommand(), a.signupCommand(), a.logoutCommand(), a.whoamiCommand(), a.keysCommand(),
		a.usageCommand(), a.envCommand())
	add("tooling", "Tooling", a.mcpCommand(), a.jobsCommand(), a.agentContextCommand(), a.feedbackCommand(), a.upgradeCommand(), a.telemetryCommand())
	return root
}

const helpTemplate = `{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}
` + exitCodesHelp + `
`

// replaced are commands of other generations of this program and what does their work here.
var replaced = map[string]string{
	"stop": "pause", "start": "resume", "ls": "status", "list": "status", "ui": "tree", "clusters": "tree",
	"rm": "delete", "clone": "branch", "restore": "run-commit", "attach": "connect",
	"pick": "checkout", "docker": "run",
}

// unknownCommand says which command may have been meant.
func unknownCommand(cmd *cobra.Command, typed string) error {
	message := fmt.Sprintf("unknown command %q for %q", typed, cmd.CommandPath())
	suggestions := cmd.SuggestionsFor(typed)
	if other := replaced[typed]; other != "" && !cmd.HasParent() {
		suggestions = []string{other}
	}
	if len(suggestions) > 0 {
		for i, s := range suggestions {
			suggestions[i] = fmt.Sprintf("'%s %s'", cmd.CommandPath(), s)
		}
		message += "; did you mean " + strings.Join(suggestions, " or ") + "?"
	} else {
		message += fmt.Sprintf("; '%s --help' lists the commands", cmd.CommandPath())
	}
	return fault.Invalidf("%s", message)
}

// group makes a command that only holds others.
func group(cmd *cobra.Command, children ...*cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(children...)
	return cmd
}

// arguments turns a mistake in the number of arguments into a usageError that names what is expected.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{err}
		}
		return nil
	}
}

// optional gives the first argument or "".
func optional(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// buildDetails is the output of --VVersion.
type buildDetails struct {
	Name        string `json:"name"`
	Version     string `json:"version"`
	Description string `json:"description"`
	GitCommit   string `json:"gitCommit"`
	BuildDate   string `json:"buildDate"`
	Author      string `json:"author"`
	Repository  string `json:"repository"`
	License     string `json:"license"`
	GoVersion   string `json:"goVersion"`
	Platform    string `json:"platform"`
	Arch        string `json:"arch"`
	Timestamp   string `json:"timestamp"`
}

func (a *App) printBuild() error {
	return printJSON(a.Streams.Out, buildDetails{
		Name: "vers", Version: a.Build.Version, Description: "git for running machines",
		GitCommit: a.Build.Commit, BuildDate: a.Build.Date, Author: "the vers authors", Repository: "vers",
		License: "Apache-2.0", GoVersion: runtime.Version(), Platform: runtime.GOOS, Arch: runtime.GOARCH,
		Timestamp: time.Now().UTC().Format(time.RFC3339),
	})
}
