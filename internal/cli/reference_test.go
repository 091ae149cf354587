package cli

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

//go:generate go test -run ^TestReference$ . -update

var update = flag.Bool("update", false, "write docs/cli.md")

const referencePath = "../../docs/cli.md"

// TestReference holds docs/cli.md to the commands.
func TestReference(t *testing.T) {
	app := &App{Streams: &Streams{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}, In: strings.NewReader("")}}
	root := app.rootCommand()
	want := reference(root)
	if *update {
		if err := os.WriteFile(referencePath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referencePath)
	if err != nil || string(got) != want {
		t.Errorf("docs/cli.md is not what the commands say (%v); run: go generate ./internal/cli", err)
	}
}

// reference writes all commands down.
func reference(root *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# `vers`: all commands\n\nGenerated from the commands (`go generate ./internal/cli`); `vers <command> --help` says the same.\n\n")
	fmt.Fprintf(&b, "%s\n\n```\n%s\n```\n\n```\n%s\n```\n\nEverywhere:\n\n%s", root.Long, root.Example, exitCodesHelp, flagTable(root.PersistentFlags()))
	for _, g := range root.Groups() {
		fmt.Fprintf(&b, "\n## %s\n", strings.TrimSuffix(g.Title, ":"))
		for _, cmd := range root.Commands() {
			if cmd.GroupID == g.ID {
				describe(&b, cmd)
				for _, child := range commands(cmd) {
					describe(&b, child)
				}
			}
		}
	}
	return b.String()
}

func describe(b *strings.Builder, cmd *cobra.Command) {
	fmt.Fprintf(b, "\n### `%s`\n\n%s.", cmd.CommandPath(), cmd.Short)
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(b, " Also called `%s`.", strings.Join(cmd.Aliases, "`, `"))
	}
	b.WriteString("\n")
	if cmd.Runnable() && (!cmd.HasSubCommands() || cmd.Flags().HasAvailableFlags()) {
		fmt.Fprintf(b, "\n```\n%s\n```\n", cmd.UseLine())
	}
	if cmd.Long != "" {
		fmt.Fprintf(b, "\n%s\n", escape(cmd.Long))
	}
	if table := flagTable(cmd.LocalNonPersistentFlags()); table != "" {
		fmt.Fprintf(b, "\n%s", table)
	}
	if cmd.Example != "" {
		fmt.Fprintf(b, "\n```sh\n%s\n```\n", unindent(cmd.Example))
	}
}

func unindent(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

// escape keeps Markdown from reading <names> as HTML.
func escape(text string) string {
	return strings.NewReplacer("<", "\\<", "|", "\\|", "*", "\\*").Replace(text)
}

func flagTable(set *pflag.FlagSet) string {
	var b strings.Builder
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		if b.Len() == 0 {
			b.WriteString("| Flag | |\n| --- | --- |\n")
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		usage := escape(f.Usage)
		if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "[]" {
			usage += " (default " + d + ")"
		}
		fmt.Fprintf(&b, "| %s | %s |\n", name, usage)
	})
	return b.String()
}
