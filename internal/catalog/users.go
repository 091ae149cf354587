package catalog

import (
	"context"
	"time"
)

// User is one row of the table users: somebody who logs in by e-mail and SSH key.
type User struct {
	ID        string
	Email     string // lower case
	CreatedAt time.Time
}

// UserKey is one row of the table user_keys: an SSH key that was accepted for a user.
type UserKey struct {
	ID          string
	UserID      string
	Email       string // of the user, ignored when written
	Fingerprint string
	PublicKey   string // authorized_keys form, without comment
	VerifiedAt  time.Time
	LastSeenAt  time.Time
}

// Membership is an organisation of a user.
type Membership struct {
	OrgID   string
	OrgName string // ignored when written
	Role    string
}

// Login is one row of the table logins: a request to log in.
type Login struct {
	Nonce       string
	UserID      string // that the user has, or will have
	Email       string
	Fingerprint string
	PublicKey   string
	Address     string // host it came from
	Note        string
	CreatedAt   time.Time
	ExpiresAt   time.Time
	ApprovedAt  *time.Time
	UsedAt      *time.Time
}

// InsertUser adds a user. A taken e-mail is fault.Conflict.
func (r *records) InsertUser(ctx context.Context, u User) error {
	return insert(ctx, r.write, "user "+u.Email, `INSERT INTO users (user_id, email, created_at) VALUES (?, ?, ?)`,
		u.ID, u.Email, timeText(u.CreatedAt))
}

// UserByEmail gives one user.
func (r *records) UserByEmail(ctx context.Context, email string) (User, error) {
	return one(ctx, r.read, "user "+email, func(row scan) (u User, err error) {
		return u, row(&u.ID, &u.Email, timeColumn{&u.CreatedAt})
	}, `SELECT user_id, email, created_at FROM users WHERE email = ?`, email)
}

const userKeyQuery = `SELECT key_id, user_id, email, fingerprint, public_key, verified_at, last_seen_at
	FROM user_keys JOIN users USING (user_id) `

func readUserKey(row scan) (UserKey, error) {
	var k UserKey
	err := row(&k.ID, &k.UserID, &k.Email, &k.Fingerprint, &k.PublicKey, timeColumn{&k.VerifiedAt}, timeColumn{&k.LastSeenAt})
	return k, err
}

// PutUserKey adds an accepted SSH key, or records that it was seen.
func (r *records) PutUserKey(ctx context.Context, k UserKey) error {
	return insert(ctx, r.write, "SSH key "+k.Fingerprint, `INSERT INTO user_keys (key_id, user_id, fingerprint, public_key,
		verified_at, last_seen_at) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (user_id, fingerprint) DO UPDATE
		SET last_seen_at = excluded.last_seen_at`,
		k.ID, k.UserID, k.Fingerprint, k.PublicKey, timeText(k.VerifiedAt), timeText(k.LastSeenAt))
}

// UserKeys lists the accepted SSH keys of a user.
func (r *records) UserKeys(ctx context.Context, userID string) ([]UserKey, error) {
	return list(ctx, r.read, "SSH keys", readUserKey, userKeyQuery+`WHERE user_id = ? ORDER BY verified_at, key_id`, userID)
}

// UserKeysByFingerprint lists the users an SSH key was accepted for.
func (r *records) UserKeysByFingerprint(ctx context.Context, fingerprint string) ([]UserKey, error) {
	return list(ctx, r.read, "SSH keys", readUserKey, userKeyQuery+`WHERE fingerprint = ? ORDER BY verified_at, key_id`, fingerprint)
}

// PutMembership makes a user a member of an organisation. A role that the user has stays.
func (r *records) PutMembership(ctx context.Context, userID string, m Membership, at time.Time) error {
	return insert(ctx, r.write, "membership", `INSERT INTO memberships (user_id, org_id, role, created_at)
		VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`, userID, m.OrgID, m.Role, timeText(at))
}

// Memberships lists the organisations of a user, the first one joined first.
func (r *records) Memberships(ctx context.Context, userID string) ([]Membership, error) {
	return list(ctx, r.read, "memberships", func(row scan) (m Membership, err error) {
		return m, row(&m.OrgID, &m.OrgName, &m.Role)
	}, `SELECT org_id, name, role FROM memberships JOIN organisations USING (org_id)
		WHERE user_id = ? AND deleted_at IS NULL ORDER BY memberships.created_at, name`, userID)
}

const loginColumns = `nonce, user_id, email, fingerprint, public_key, address, note, created_at, expires_at, approved_at, used_at`

func readLogin(row scan) (Login, error) {
	var l Login
	err := row(&l.Nonce, &l.UserID, &l.Email, &l.Fingerprint, &l.PublicKey, &l.Address, &l.Note, timeColumn{&l.CreatedAt},
		timeColumn{&l.ExpiresAt}, optionalTimeColumn{&l.ApprovedAt}, optionalTimeColumn{&l.UsedAt})
	return l, err
}

// InsertLogin adds a request to log in.
func (r *records) InsertLogin(ctx context.Context, l Login) error {
	return insert(ctx, r.write, "login request", `INSERT INTO logins (`+loginColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		l.Nonce, l.UserID, l.Email, l.Fingerprint, l.PublicKey, l.Address, l.Note, timeText(l.CreatedAt), timeText(l.ExpiresAt),
		optionalTimeText(l.ApprovedAt), optionalTimeText(l.UsedAt))
}

// UpdateLogin writes how far a request is, and until when it counts.
func (r *records) UpdateLogin(ctx context.Context, l Login) error {
	return change(ctx, r.write, "login request", `UPDATE logins SET expires_at = ?, approved_at = ?, used_at = ? WHERE nonce = ?`,
		timeText(l.ExpiresAt), optionalTimeText(l.ApprovedAt), optionalTimeText(l.UsedAt), l.Nonce)
}

// Logins lists the requests to log in, oldest first.
func (r *records) Logins(ctx context.Context) ([]Login, error) {
	return list(ctx, r.read, "login requests", readLogin, `SELECT `+loginColumns+` FROM logins ORDER BY created_at, rowid`)
}

// DeleteLogin removes a request to log in.
func (r *records) DeleteLogin(ctx context.Context, nonce string) error {
	return change(ctx, r.write, "login request", `DELETE FROM logins WHERE nonce = ?`, nonce)
}

// RemoveLoginsBefore forgets the requests that expired before a time.
func (r *records) RemoveLoginsBefore(ctx context.Context, t time.Time) error {
	_, err := r.write.ExecContext(ctx, `DELETE FROM logins WHERE expires_at < ?`, timeText(t))
	return translate(err, "login requests")
}
