package cli

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
)

var envKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func checkEnvKey(key string) error {
	if !envKey.MatchString(key) || len(key) > 256 {
		return fault.Invalidf("invalid variable name '%s': use a letter or '_', then letters, digits or '_', at most 256", shorten(key, 40))
	}
	return nil
}

func checkEnvValue(key, value string) error {
	if n := utf8.RuneCountInString(value); n > 8192 {
		return fault.Invalidf("the value of %s has %d characters; at most 8192 are possible", key, n)
	}
	return nil
}

func (a *App) envCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "env", Short: "Variables that new VMs get",
		Long: `Variables of the organisation. They are written to /etc/environment of VMs made afterwards by run, branch
and run-commit; VMs that exist keep theirs.`,
		Example: "  vers env set DATABASE_URL postgres://db/app\n  vers env list\n  vers env delete DATABASE_URL",
	}
	return group(cmd, a.envListCommand(), a.envSetCommand(), a.envDeleteCommand())
}

// envVar is one variable in JSON.
type envVar struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

func (a *App) envListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the variables",
		Long:    "List the variables. --format json gives an array of {key, value}, --format json-map an object.",
		Example: "  vers env list\n  vers env list --format json | jq -r '.[].key'",
		Args:    arguments(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.envList(cmd.Context(), format, pages) },
	}
	format.addQuiet(cmd, "print names only")
	pages.add(cmd)
	return cmd
}

func (a *App) envList(ctx context.Context, format formatFlags, pages pageFlags) error {
	mode, client, err := a.begin(format, "json-map")
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the variables")
	defer cancel()
	vars, err := client.EnvVars(ctx)
	if err != nil {
		return err
	}
	if mode == modeJSONMap {
		if vars == nil {
			vars = map[string]string{}
		}
		return printJSON(a.Streams.Out, vars)
	}
	list := []envVar{}
	for _, key := range slices.Sorted(maps.Keys(vars)) {
		list = append(list, envVar{key, vars[key]})
	}
	return listing[envVar]{
		name:   func(v envVar) string { return v.Key },
		header: []string{"KEY", "VALUE"},
		row:    func(v envVar) []string { return []string{v.Key, shorten(clean(v.Value), 50)} },
		empty:  "No environment variables set.",
	}.print(a, mode, pages, list)
}

func (a *App) envSetCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "set <KEY> <VALUE>", Short: "Add or change a variable",
		Example: "  vers env set DATABASE_URL postgres://db/app",
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.envSet(cmd.Context(), args[0], args[1], format)
		},
	}
	format.add(cmd)
	return cmd
}

func (a *App) envSet(ctx context.Context, key, value string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	if err := checkEnvKey(key); err != nil {
		return err
	}
	if err := checkEnvValue(key, value); err != nil {
		return err
	}
	client, err := a.api()
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "setting the variable")
	defer cancel()
	if _, err := client.SetEnvVars(ctx, map[string]string{key: value}, false); err != nil {
		return err
	}
	return a.show(mode, key, envVar{key, value}, a.say("✓ %s set\nNew VMs will get it; existing ones keep what they have.", key))
}

func (a *App) envDeleteCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "delete <KEY>", Aliases: []string{"del", "rm", "remove"}, Short: "Remove a variable",
		Example: "  vers env delete DATABASE_URL",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.envDelete(cmd.Context(), args[0], format)
		},
		ValidArgsFunction: a.completeEnv,
	}
	format.add(cmd)
	return cmd
}

func (a *App) envDelete(ctx context.Context, key string, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, listLimit, "removing the variable")
	defer cancel()
	err = client.DeleteEnvVar(ctx, key)
	switch {
	case api.IsNotFound(err):
		return rewordf(err, "environment variable '%s' not found; 'vers env list' shows them", key)
	case err != nil:
		return err
	}
	return a.show(mode, key, map[string]string{"key": key}, a.say("✓ %s deleted", key))
}
