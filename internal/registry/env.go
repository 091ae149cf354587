package registry

import (
	"context"
	"regexp"
	"strings"
	"unicode/utf8"

	"vers/internal/catalog"
	"vers/internal/fault"
)

// Limits of environment variables, in characters (spec/api.md 3.8).
const (
	EnvKeyLimit   = 256
	EnvValueLimit = 8192
)

var envKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// CheckEnv refuses variables that break the rules. The message names the key, never the value.
func CheckEnv(vars map[string]string) error {
	for key, value := range vars {
		switch {
		case len(key) > EnvKeyLimit || !envKey.MatchString(key):
			return fault.Invalidf("environment variable name %.64q is not valid: a letter or '_', then letters, digits or '_', at most %d",
				key, EnvKeyLimit)
		case utf8.RuneCountInString(value) > EnvValueLimit:
			return fault.Invalidf("the value of environment variable %s has %d characters; at most %d are possible",
				key, utf8.RuneCountInString(value), EnvValueLimit)
		case strings.ContainsRune(value, 0):
			return fault.Invalidf("the value of environment variable %s contains a NUL character", key)
		}
	}
	return nil
}

// Env gives the environment variables of an organisation, never nil.
func (r *Registry) Env(ctx context.Context, orgID string) (map[string]string, error) {
	return r.catalog.Env(ctx, orgID)
}

// PutEnv sets variables and gives all that exist then. With replace, exactly vars remain. Nothing is stored if one of
// them breaks the rules.
func (r *Registry) PutEnv(ctx context.Context, orgID string, vars map[string]string, replace bool) (all map[string]string, err error) {
	if err := CheckEnv(vars); err != nil {
		return nil, err
	}
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if replace {
			if err := tx.ClearEnv(ctx, orgID); err != nil {
				return err
			}
		}
		if err := tx.PutEnv(ctx, orgID, vars); err != nil {
			return err
		}
		all, err = tx.Env(ctx, orgID)
		return err
	})
	return all, err
}

// DeleteEnv removes one variable.
func (r *Registry) DeleteEnv(ctx context.Context, orgID, key string) error {
	err := r.catalog.DeleteEnv(ctx, orgID, key)
	if fault.Is(err, fault.NotFound) {
		err = fault.NotFoundf("Environment variable not found: %s", key)
	}
	return err
}
