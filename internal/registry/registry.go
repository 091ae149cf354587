// Package registry holds the rules about who owns what and what it is called: organisations, API keys, environment
// variables, repositories, tags and references, names and visibility of commits. It starts no VM.
//
// Everything belongs to an organisation, and all keys of an organisation may do everything with its objects. An object
// of another organisation is fault.NotFound, unless it is public: then what only its owner may do is fault.Forbidden.
package registry

import (
	"context"
	"sync"
	"time"

	"vers/internal/catalog"
	"vers/internal/ident"
)

// Registry applies the rules to a catalogue. Its methods are safe for concurrent use.
type Registry struct {
	catalog  *catalog.Catalog
	firstGID int
	quotas   catalog.Quotas
	login    LoginOptions
	now      func() time.Time
	touched  sync.Map // key id: when its last use was recorded
}

// Options of a Registry.
type Options struct {
	FirstGID int              // group id of the first organisation, the next ones count up; 0: DefaultFirstGID
	Quotas   catalog.Quotas   // of organisations that have none of their own; nil: no limit
	Login    LoginOptions     // who may log in by e-mail and SSH key
	Now      func() time.Time // nil: time.Now
}

// DefaultFirstGID lies above the ranges that distributions and user namespaces give out.
const DefaultFirstGID = 770000

// New makes a registry on a catalogue.
func New(c *catalog.Catalog, options Options) *Registry {
	r := &Registry{catalog: c, firstGID: options.FirstGID, quotas: options.Quotas, login: options.Login, now: options.Now}
	if r.firstGID == 0 {
		r.firstGID = DefaultFirstGID
	}
	if r.now == nil {
		r.now = time.Now
	}
	return r
}

// FirstStart is what Setup made. Secret is shown once and stored nowhere.
type FirstStart struct {
	Organisation catalog.Organisation
	Key          catalog.Key
	Secret       string
}

// Setup makes the first organisation with its local key and one API key. Where an organisation exists it does nothing
// and returns nil.
func (r *Registry) Setup(ctx context.Context, orgName string) (*FirstStart, error) {
	var first *FirstStart
	err := r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		existing, err := tx.Organisations(ctx)
		if err != nil || len(existing) > 0 {
			return err
		}
		first = &FirstStart{}
		if first.Organisation, err = r.createOrganisation(ctx, tx, orgName); err != nil {
			return err
		}
		local := catalog.Key{ID: ident.New(), OrgID: first.Organisation.ID, Name: LocalKeyName, IsLocal: true, CreatedAt: r.now()}
		if err := tx.InsertKey(ctx, local); err != nil {
			return err
		}
		first.Key, first.Secret, err = r.createKey(ctx, tx, first.Organisation.ID, "first key")
		return err
	})
	if err != nil {
		return nil, err
	}
	return first, nil
}
