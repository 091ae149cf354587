package cli

import (
	"context"

	"vers/api"
	"vers/internal/cli/mcp"
)

// addAccountTools adds the tools for variables and images.
func (m *agentTools) addAccountTools(s *mcp.Server) {
	type none struct{}
	type envOutput struct {
		Variables []envVar `json:"variables"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.env.list", Title: "List variables", PerMinute: 60, ReadOnly: true,
		Description: "Lists the environment variables that new VMs get.",
	}, func(ctx context.Context, call *mcp.Call, _ none) (envOutput, error) {
		vars, err := command[[]envVar](m, call, func(a *App) error { return a.envList(ctx, asJSON, pageFlags{}) })
		return envOutput{vars}, err
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.env.set", Title: "Set a variable", PerMinute: 30, Idempotent: true, Destructive: true,
		Description: "Adds or changes an environment variable of VMs made afterwards; VMs that exist keep theirs.",
	}, func(ctx context.Context, call *mcp.Call, in envVar) (envVar, error) {
		return command[envVar](m, call, func(a *App) error { return a.envSet(ctx, in.Key, in.Value, asJSON) })
	})
	type deleteInput struct {
		Key              string `json:"key"`
		SkipConfirmation bool   `json:"skipConfirmation,omitempty" jsonschema:"must be true: the user wants it deleted"`
	}
	type keyOutput struct {
		Key string `json:"key"`
	}
	mcp.Add(s, mcp.Tool{
		Name: "vers.env.delete", Title: "Remove a variable", PerMinute: 30, Destructive: true,
		Description: "Removes an environment variable, so that new VMs do not get it. Needs skipConfirmation: true.",
	}, func(ctx context.Context, call *mcp.Call, in deleteInput) (keyOutput, error) {
		if err := confirmed(in.SkipConfirmation, "variable '%s'", in.Key); err != nil {
			return keyOutput{in.Key}, err
		}
		return command[keyOutput](m, call, func(a *App) error { return a.envDelete(ctx, in.Key, asJSON) })
	})
	mcp.Add(s, mcp.Tool{
		Name: "vers.rootfs.list", Title: "List images", PerMinute: 60, ReadOnly: true,
		Description: "Lists the rootfs images that vers.run can start VMs from.",
	}, func(ctx context.Context, call *mcp.Call, in pageInput) (listOutput[api.Image], error) {
		var all []api.Image
		err := m.with(call, func(_ *App, client *api.Client) (err error) {
			ctx, cancel := limit(ctx, listLimit, "listing the images")
			defer cancel()
			all, err = client.Images(ctx)
			return err
		})
		return pageOf(in, all, err)
	})
}
