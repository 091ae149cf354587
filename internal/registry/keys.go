package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"strings"
	"time"
	"unicode"
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

// keyLimit bounds the usable keys of an organisation.
const keyLimit = 1000

// KeyOption says what a key is beyond its name.
type KeyOption func(*catalog.Key)

// Expires ends the life of a key at a time.
func Expires(at time.Time) KeyOption { return func(k *catalog.Key) { k.ExpiresAt = &at } }

// Admin lets a key read what concerns the whole server.
func Admin() KeyOption { return func(k *catalog.Key) { k.IsAdmin = true } }

// CreateKey makes an API key. The returned text is the key; only a hash of it is kept.
func (r *Registry) CreateKey(ctx context.Context, orgID, name string, options ...KeyOption) (key catalog.Key, text string, err error) {
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		if _, err := tx.Organisation(ctx, orgID); err != nil {
			return err
		}
		key, text, err = r.createKey(ctx, tx, orgID, name, options...)
		return err
	})
	return key, text, err
}

// CreateKeyBy makes an API key on behalf of another one. The new key does not outlive it, or a key with an end would be
// none. Without expires it ends with the key that makes it, if that ends.
func (r *Registry) CreateKeyBy(ctx context.Context, by catalog.Key, name string, expires *time.Time) (catalog.Key, string, error) {
	if expires == nil {
		expires = by.ExpiresAt
	}
	if expires == nil {
		return r.CreateKey(ctx, by.OrgID, name)
	}
	if by.ExpiresAt != nil && expires.After(*by.ExpiresAt) {
		return catalog.Key{}, "", fault.Invalidf("expires_at is after %s, when the key that you call with ends: choose an earlier time, or use a key that does not end",
			by.ExpiresAt.Format(time.RFC3339))
	}
	return r.CreateKey(ctx, by.OrgID, name, Expires(*expires))
}

func (r *Registry) createKey(ctx context.Context, tx *catalog.Tx, orgID, name string, options ...KeyOption) (catalog.Key, string, error) {
	if !printable(name) || name == "" || utf8.RuneCountInString(name) > keyNameLimit {
		return catalog.Key{}, "", fault.Invalidf("key name must have 1 to %d printable characters", keyNameLimit)
	}
	var random [secretBytes]byte
	rand.Read(random[:]) //nolint:errcheck // never fails
	secret := hex.EncodeToString(random[:])
	key := catalog.Key{ID: ident.New(), OrgID: orgID, Name: name, Hash: hashOf(secret), CreatedAt: r.now()}
	for _, option := range options {
		option(&key)
	}
	if key.ExpiresAt != nil && !key.ExpiresAt.After(r.now()) {
		return catalog.Key{}, "", fault.Invalidf("the key would end at %s, which is over already", key.ExpiresAt.UTC().Format(time.RFC3339))
	}
	if err := r.roomForKey(ctx, tx, orgID); err != nil {
		return catalog.Key{}, "", err
	}
	return key, key.ID + secret, tx.InsertKey(ctx, key)
}

// printable refuses control and formatting characters, which could hide what a name is, and white space at the ends.
func printable(s string) bool {
	if strings.TrimSpace(s) != s || !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(c rune) bool { return c != ' ' && !unicode.IsPrint(c) })
}

func (r *Registry) roomForKey(ctx context.Context, tx *catalog.Tx, orgID string) error {
	keys, err := tx.Keys(ctx, orgID)
	if err != nil {
		return err
	}
	usable := 0
	for _, key := range keys {
		if live(key, r.now()) {
			usable++
		}
	}
	if usable >= keyLimit {
		return fault.Exhaustedf("this organisation has %d usable API keys, which is the limit; revoke those that are not needed", usable)
	}
	return nil
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

// FindKey gives the key of an organisation that an id or a name means. Of several keys with one name only one may be
// usable.
func (r *Registry) FindKey(ctx context.Context, orgID, name string) (catalog.Key, error) {
	keys, err := r.catalog.Keys(ctx, orgID)
	if err != nil {
		return catalog.Key{}, err
	}
	var found []catalog.Key
	for _, key := range keys {
		if key.ID == strings.ToLower(name) {
			return key, nil
		}
		if key.Name == name && live(key, r.now()) {
			found = append(found, key)
		}
	}
	switch len(found) {
	case 0:
		return catalog.Key{}, fault.NotFoundf("no usable API key with the id or name '%s'", name)
	case 1:
		return found[0], nil
	}
	return catalog.Key{}, fault.Conflictf("%d API keys are named '%s': give the id of one", len(found), name)
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
	r.touch(ctx, key)
	return key, nil
}

// touchEvery is how exactly the last use of a key is known: every write waits for the disk.
const touchEvery = time.Minute

// touch records the use of a key. That it cannot be written is no reason to refuse the key.
func (r *Registry) touch(ctx context.Context, key catalog.Key) {
	now := r.now()
	if key.LastUsedAt != nil && now.Sub(*key.LastUsedAt) < touchEvery {
		return
	}
	if at, busy := r.touched.Swap(key.ID, now); busy && now.Sub(at.(time.Time)) < touchEvery {
		return // another request is just doing it
	}
	_ = r.catalog.TouchKey(ctx, key.ID, now)
}

// LocalKey gives the key that connections over the UNIX socket act as.
func (r *Registry) LocalKey(ctx context.Context) (catalog.Key, error) {
	return r.catalog.LocalKey(ctx)
}
