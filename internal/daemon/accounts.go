package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"vers/internal/audit"
	"vers/internal/catalog"
	"vers/internal/config"
	"vers/internal/fault"
	"vers/internal/registry"
)

// newRegistry makes a registry that follows the configuration.
func newRegistry(c *catalog.Catalog, config config.Server) *registry.Registry {
	limit := func(n int64) *int64 {
		if n == 0 {
			return nil
		}
		return &n
	}
	q := config.Quota
	return registry.New(c, registry.Options{
		Quotas: catalog.Quotas{VMs: limit(q.VMs), VCPUs: limit(q.VCPUs), MemoryMiB: limit(q.MemoryMiB), StorageMiB: limit(q.StorageMiB)},
		Login:  registry.LoginOptions{Mode: registry.LoginMode(config.ShellAuth.Mode), Organisation: config.ShellAuth.Organisation},
	})
}

// Accounts are the organisations, keys and logins of a data directory, for the operator's commands. They work directly on
// the catalogue, whether versd runs or not: who may write to it needs no other right, there is no remote door to guard,
// and a server that does not start can still be looked after. versd reads the catalogue at every request, so a change
// counts at once.
type Accounts struct {
	*registry.Registry
	catalog *catalog.Catalog
	audit   *audit.Log
}

// OpenAccounts opens the accounts of a data directory that a versd has run on.
func OpenAccounts(ctx context.Context, c config.Server) (*Accounts, error) {
	path := filepath.Join(c.DataDir, "catalog.db")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no versd has run on %s: start it once, or name its configuration with --config", c.DataDir)
	}
	cat, err := catalog.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	log, err := audit.Open(filepath.Join(c.DataDir, audit.Name), audit.Options{})
	if err != nil {
		return nil, errors.Join(err, cat.Close())
	}
	return &Accounts{Registry: newRegistry(cat, c), catalog: cat, audit: log}, nil
}

// Close lets go of the catalogue.
func (a *Accounts) Close() error { return errors.Join(a.audit.Close(), a.catalog.Close()) }

// Holdings counts what users of an organisation see, and what its commits take on disk as far as that is known.
func (a *Accounts) Holdings(ctx context.Context, orgID string) (vms, commits, storedBytes int64, err error) {
	if vms, commits, _, err = a.catalog.Holdings(ctx, orgID); err != nil {
		return 0, 0, 0, err
	}
	storedBytes, err = a.catalog.StoredBytes(ctx, orgID)
	return vms, commits, storedBytes, err
}

// Record does something and writes into the audit log that an operator did, with its result.
func (a *Accounts) Record(action, object string, org catalog.Organisation, do func() (made map[string]string, err error)) error {
	made, err := do()
	e := audit.Entry{Time: time.Now().UTC(), OrgID: org.ID, Org: org.Name, Actor: operator(), Address: "local",
		Action: "versd " + action, Object: object, Made: made, Result: "ok"}
	if err != nil {
		e.Result, e.Made = fault.KindOf(err).String(), nil
	}
	return errors.Join(err, a.audit.Append(e))
}

// operator names the user of the host who runs a command.
func operator() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return "operator " + name
	}
	if u, err := user.Current(); err == nil {
		return "operator " + u.Username
	}
	return fmt.Sprintf("operator uid %d", os.Getuid())
}

// Audit calls do for the chosen entries of a data directory's audit log, oldest first.
func Audit(c config.Server, f audit.Filter, do func(audit.Entry) error) error {
	return audit.Read(filepath.Join(c.DataDir, audit.Name), f, do)
}
