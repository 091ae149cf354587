package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"vers/api"
	"vers/images"
	"vers/internal/bake"
	"vers/internal/catalog"
	"vers/internal/config"
	"vers/internal/fault"
	"vers/internal/registry"
)

// supportedOrganisation publishes the supported images.
const supportedOrganisation = "vers"

// bakeKeyLife is how long the key of a run lives if the run ends without revoking it.
const bakeKeyLife = 24 * time.Hour

// BakeOptions of BakeImages.
type BakeOptions struct {
	Images    []string // none: all
	IfChanged bool
	NoCache   bool
	Keep      int
	Verbose   bool
	Progress  io.Writer
}

// BakeImages makes and publishes the supported images with the running versd, whose organisation vers is made when it is
// missing. Its requests have a key of their own, which lives as long as the run. The error says which images failed.
func BakeImages(ctx context.Context, c config.Server, o BakeOptions) (err error) {
	accounts, err := OpenAccounts(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, accounts.Close()) }()
	client, done, err := accounts.bakeClient(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	host, err := bake.ReadHost(ctx)
	if err != nil {
		return fmt.Errorf("find out how this host reaches its package sources: %w", err)
	}
	for _, w := range host.Warnings {
		fmt.Fprintf(o.Progress, "warning: %s\n", w)
	}
	outcomes, err := bake.Run(ctx, bake.Options{
		Client: client, Definitions: images.Supported, Images: o.Images, Host: host, Now: time.Now(),
		IfChanged: o.IfChanged, NoCache: o.NoCache, Keep: o.Keep, Verbose: o.Verbose,
		Say: func(image, line string) { fmt.Fprintf(o.Progress, "%s: %s\n", image, line) },
	})
	return errors.Join(bakeResult(outcomes, o.Progress), err)
}

// bakeResult shows what became of each image that did not fail; the error names the others.
func bakeResult(outcomes []bake.Outcome, progress io.Writer) error {
	var failed []string
	for _, out := range outcomes {
		switch {
		case out.Err != nil:
			failed = append(failed, out.Image)
		case out.Skipped:
			fmt.Fprintf(progress, "%s: nothing to do\n", out.Image)
		default:
			fmt.Fprintf(progress, "%s: done in %v; get it with: vers repo fork %s/%s:latest\n", out.Image, out.Took.Round(time.Second), supportedOrganisation, out.Image)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d images failed: %s", len(failed), len(outcomes), strings.Join(failed, ", "))
	}
	return nil
}

// bakeClient makes a client that acts for the organisation of the supported images. done revokes its key.
func (a *Accounts) bakeClient(ctx context.Context, c config.Server) (client *api.Client, done func() error, err error) {
	address, err := serverAddress(c)
	if err != nil {
		return nil, nil, err
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := Wait(wait, c); err != nil {
		return nil, nil, fmt.Errorf("images are made by a running versd: start it first: %w", err)
	}
	org, err := a.ensureOrganisation(ctx, supportedOrganisation)
	if err != nil {
		return nil, nil, err
	}
	var key catalog.Key
	var secret string
	err = a.Record("key create", "images bake", org, func() (_ map[string]string, err error) {
		key, secret, err = a.CreateKey(ctx, org.ID, "images bake", registry.Expires(time.Now().Add(bakeKeyLife)))
		return map[string]string{"key_id": key.ID}, err
	})
	if err != nil {
		return nil, nil, err
	}
	done = func() error {
		return a.Record("key revoke", key.ID, org, func() (map[string]string, error) {
			return nil, a.RevokeKey(context.WithoutCancel(ctx), org.ID, key.ID)
		})
	}
	if client, err = api.NewClient(address, api.WithKey(secret), api.WithUserAgent("versd images bake")); err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return client, done, nil
}

// serverAddress is where versd answers on this host.
func serverAddress(c config.Server) (string, error) {
	if c.Socket != "" {
		return "unix://" + c.Socket, nil
	}
	data, err := os.ReadFile(c.DataDir + "/address")
	if err != nil {
		return "", fmt.Errorf("images are made by a running versd: %w", err)
	}
	return "http://" + strings.TrimSpace(string(data)), nil
}

func (a *Accounts) ensureOrganisation(ctx context.Context, name string) (catalog.Organisation, error) {
	all, err := a.Organisations(ctx)
	if err != nil {
		return catalog.Organisation{}, err
	}
	if i := slices.IndexFunc(all, func(o catalog.Organisation) bool { return o.Name == name }); i >= 0 {
		return all[i], nil
	}
	var made catalog.Organisation
	err = a.Record("org create", name, catalog.Organisation{Name: name}, func() (_ map[string]string, err error) {
		made, err = a.CreateOrganisation(ctx, name)
		return map[string]string{"org_id": made.ID}, err
	})
	if fault.Is(err, fault.Conflict) { // somebody else has just made it
		return a.OrganisationByName(ctx, name)
	}
	return made, err
}
