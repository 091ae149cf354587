package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"strings"
	"unicode/utf8"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// LocalKeyName is the name of the key that connections over the UNIX socket act as. It has no secret.
const LocalKeyName = "local"

// An API key is its id, a UUID, directly followed by the hexadecimal digits of a random secret (spec/api.md 1.2).
const (
	idLength     = 36
	secretBytes  = 32
	secretLength = 2 * secretBytes
)

const keyNameLimit = 128

// CreateKey makes an API key. The returned text is the key; only a hash of it is kept.
func (r *Registry) CreateKey(ctx context.Context, orgID, name string) (key catalog.Key, text string, err error) {
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if _, err := tx.Organisation(ctx, orgID); err != nil {
			return err
		}
		key, text, err = r.createKey(ctx, tx, orgID, name)
		return err
	})
	return key, text, err
}

func (r *Registry) createKey(ctx context.Context, tx *catalog.Tx, orgID, name string) (catalog.Key, string, error) {
	if name == "" || utf8.RuneCountInString(name) > keyNameLimit {
		return catalog.Key{}, "", fault.Invalidf("key name must have 1 to %d characters", keyNameLimit)
	}
	var random [secretBytes]byte
	rand.Read(random[:]) //nolint:errcheck // never fails
	secret := hex.EncodeToString(random[:])
	key := catalog.Key{ID: ident.New(), OrgID: orgID, Name: name, Hash: hashOf(secret), CreatedAt: r.now()}
	return key, key.ID + secret, tx.InsertKey(ctx, key)
}

func hashOf(secret string) []byte {
	hash := sha256.Sum256([]byte(secret))
	return hash[:]
}

// Keys lists the API keys of an organisation.
func (r *Registry) Keys(ctx context.Context, orgID string) ([]catalog.Key, error) {
	return r.catalog.Keys(ctx, orgID)
}

// RevokeKey ends the life of an API key of an organisation.
func (r *Registry) RevokeKey(ctx context.Context, orgID, keyID string) error {
	return r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		key, err := tx.Key(ctx, keyID)
		if err != nil {
			return err
		}
		if key.OrgID != orgID {
			return fault.NotFoundf("API key %s not found", keyID)
		}
		if key.IsLocal {
			return fault.Conflictf("API key %s stands for connections over the local socket and cannot be revoked", keyID)
		}
		return tx.RevokeKey(ctx, keyID, r.now())
	})
}

// Authenticate finds the key that text is. Whatever is wrong with it is fault.Unauthenticated, and the time it takes
// says nothing about how much of the secret was right.
func (r *Registry) Authenticate(ctx context.Context, text string) (catalog.Key, error) {
	refused := fault.New(fault.Unauthenticated, "unauthorized: this API key is not known here; check VERS_API_KEY or run 'vers login'")
	if len(text) != idLength+secretLength {
		return catalog.Key{}, refused
	}
	id, ok := ident.Parse(text[:idLength])
	if !ok || strings.ToLower(text) != text {
		return catalog.Key{}, refused
	}
	key, err := r.catalog.Key(ctx, id)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return catalog.Key{}, err
	}
	// An unknown id has an empty hash, which equals nothing.
	if subtle.ConstantTimeCompare(key.Hash, hashOf(text[idLength:])) != 1 {
		return catalog.Key{}, refused
	}
	if key.RevokedAt != nil {
		return catalog.Key{}, fault.New(fault.Unauthenticated, "unauthorized: API key %s (%s) was revoked; use another one", key.ID, key.Name)
	}
	if key.ExpiresAt != nil && !r.now().Before(*key.ExpiresAt) {
		return catalog.Key{}, fault.New(fault.Unauthenticated, "unauthorized: API key %s (%s) has expired; use another one", key.ID, key.Name)
	}
	return key, nil
}

// LocalKey gives the key that connections over the UNIX socket act as.
func (r *Registry) LocalKey(ctx context.Context) (catalog.Key, error) {
	return r.catalog.LocalKey(ctx)
}
