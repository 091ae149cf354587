// Package registry holds the rules about who owns what and what it is called: organisations, API keys, environment
// variables, repositories, tags and references, names and visibility of commits. It starts no VM.
//
// Everything belongs to an organisation, and all keys of an organisation may do everything with its objects. An object
// of another organisation is fault.NotFound, unless it is public: then what only its owner may do is fault.Forbidden.
package registry

import (
	"context"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// Registry applies the rules to a catalogue. Its methods are safe for concurrent use.
type Registry struct {
	catalog  *catalog.Catalog
	firstGID int
	now      func() time.Time
}

// Option changes what New makes.
type Option func(*Registry)

// WithFirstGID sets the group id of the first organisation; the next ones count up.
func WithFirstGID(gid int) Option { return func(r *Registry) { r.firstGID = gid } }

// WithClock sets where the time comes from.
func WithClock(now func() time.Time) Option { return func(r *Registry) { r.now = now } }

// defaultFirstGID lies above the ranges that distributions and user namespaces give out.
const defaultFirstGID = 770000

// New makes a registry on a catalogue.
func New(c *catalog.Catalog, options ...Option) *Registry {
	r := &Registry{catalog: c, firstGID: defaultFirstGID, now: time.Now}
	for _, option := range options {
		option(r)
	}
	return r
}

// Organisations lists all organisations, the first one made first.
func (r *Registry) Organisations(ctx context.Context) ([]catalog.Organisation, error) {
	return r.catalog.Organisations(ctx)
}

// Organisation gives one organisation.
func (r *Registry) Organisation(ctx context.Context, id string) (catalog.Organisation, error) {
	return r.catalog.Organisation(ctx, id)
}

// CreateOrganisation makes an organisation with a name nobody has, and the key that local connections act as in it.
func (r *Registry) CreateOrganisation(ctx context.Context, name string) (catalog.Organisation, error) {
	org := catalog.Organisation{ID: ident.New(), Name: name, GID: r.firstGID, CreatedAt: r.now()}
	if !ident.ValidName(name, ident.RepositoryName) {
		return org, fault.Invalidf("organisation name %q is not valid: use 1 to %d letters, digits, '-', '_' or '.'",
			name, ident.RepositoryName)
	}
	err := r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		others, err := tx.Organisations(ctx)
		if err != nil {
			return err
		}
		for _, other := range others {
			org.GID = max(org.GID, other.GID+1)
		}
		if err := tx.InsertOrganisation(ctx, org); err != nil {
			return err
		}
		return tx.InsertKey(ctx, catalog.Key{ID: ident.New(), OrgID: org.ID, Name: LocalKeyName, IsLocal: true, CreatedAt: r.now()})
	})
	return org, err
}
