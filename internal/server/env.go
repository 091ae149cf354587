package server

import (
	"context"
	"net/http"

	"vers/api"
)

func (s *Server) routeEnv() {
	add(s, operation{method: http.MethodGet, path: "/env_vars", id: "list-env-vars",
		summary: "Environment variables that new VMs get", tag: "Account"}, s.listEnv)
	add(s, operation{method: http.MethodPut, path: "/env_vars", id: "set-env-vars",
		summary: "Set environment variables", tag: "Account"}, s.putEnv)
	add(s, operation{method: http.MethodDelete, path: "/env_vars/{key}", status: http.StatusNoContent, id: "delete-env-var",
		summary: "Delete an environment variable", tag: "Account"}, s.deleteEnv)
}

func (s *Server) listEnv(ctx context.Context, _ *none) (*output[api.EnvVars], error) {
	vars, err := s.Registry.Env(ctx, orgOf(ctx))
	if err != nil {
		return nil, err
	}
	return reply(api.EnvVars{Vars: vars}), nil
}

type putEnvInput struct{ Body api.EnvVarsRequest }

func (s *Server) putEnv(ctx context.Context, in *putEnvInput) (*output[api.EnvVars], error) {
	ctx, cancel := detach(ctx)
	defer cancel()
	vars, err := s.Registry.PutEnv(ctx, orgOf(ctx), in.Body.Vars, in.Body.Replace)
	if err != nil {
		return nil, err
	}
	return reply(api.EnvVars{Vars: vars}), nil
}

type deleteEnvInput struct {
	Key string `path:"key"`
}

func (s *Server) deleteEnv(ctx context.Context, in *deleteEnvInput) (*none, error) {
	ctx, cancel := detach(ctx)
	defer cancel()
	return &none{}, s.Registry.DeleteEnv(ctx, orgOf(ctx), in.Key)
}
