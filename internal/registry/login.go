package registry

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// LoginMode says who may log in by e-mail and SSH key (spec/api.md 3.12).
//
// The protocol sends the public key only, and public keys are no secret: nothing proves that who asks has the private
// one. So in LoginToken an operator approves every single login, for a short time, and only for the address it came from.
// LoginOpen believes everybody; it is for servers where everybody may do everything.
type LoginMode string

// The modes. "" is LoginClosed.
const (
	LoginClosed LoginMode = "closed"
	LoginToken  LoginMode = "token"
	LoginOpen   LoginMode = "open"
)

// LoginOptions say who may log in by e-mail and SSH key.
type LoginOptions struct {
	Mode         LoginMode
	Organisation string // that new users join; "": each gets one of their own
}

const (
	loginLife      = 10 * time.Minute // of a request until it is approved, and from then until it is used
	loginsPending  = 100              // on the server
	loginsPerEmail = 5
	labelLength    = 5 // of an API key's label, at least
	noteLimit      = 1000
)

// Roles of members. Both may do everything with the organisation's objects.
const (
	RoleOwner  = "owner"
	RoleMember = "member"
)

// LoginRequest is a request to log in.
type LoginRequest struct {
	Email     string
	PublicKey string // one line in authorized_keys form
	Note      string // words for the operator
	Address   string // host the request came from
}

// Login is how far a request is.
type Login struct {
	catalog.Login
	IsNewUser     bool
	Verified      bool
	KeyID         string               // of the SSH key; only if Verified
	Organisations []catalog.Membership // only if Verified
}

// StartLogin takes a request to log in. The same one again gives the one that is open.
func (r *Registry) StartLogin(ctx context.Context, req LoginRequest) (started Login, err error) {
	key, err := r.readLogin(&req)
	if err != nil {
		return started, err
	}
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		open, found, err := r.openLogin(ctx, tx, req, key.fingerprint)
		if err != nil {
			return err
		}
		user, err := tx.UserByEmail(ctx, req.Email)
		started.IsNewUser = fault.Is(err, fault.NotFound)
		if err != nil && !started.IsNewUser {
			return err
		}
		if !found || open.UsedAt != nil {
			if open, err = r.addLogin(ctx, tx, req, key, user.ID); err != nil {
				return err
			}
		}
		if open.ApprovedAt == nil && r.login.Mode == LoginOpen {
			if open, err = r.approveOpen(ctx, tx, open, started.IsNewUser); err != nil {
				return err
			}
		}
		started.Login, started.Verified = open, open.ApprovedAt != nil
		return nil
	})
	return started, err
}

// readLogin checks mode, e-mail and key, and makes e-mail and note canonical.
func (r *Registry) readLogin(req *LoginRequest) (publicKey, error) {
	err := r.loginPossible()
	if err != nil {
		return publicKey{}, err
	}
	if req.Email, err = parseEmail(req.Email); err != nil {
		return publicKey{}, err
	}
	req.Note = Printable(req.Note, noteLimit)
	return parsePublicKey(req.PublicKey)
}

func (r *Registry) loginPossible() error {
	if r.login.Mode == LoginOpen || r.login.Mode == LoginToken {
		return nil
	}
	return fault.Forbiddenf("logging in by e-mail and SSH key is switched off on this server: ask its operator for an API key, and use 'vers login --token'")
}

// openLogin finds the request of an e-mail, key and address that has not expired.
func (r *Registry) openLogin(ctx context.Context, tx *catalog.Tx, req LoginRequest, fingerprint string) (catalog.Login, bool, error) {
	if err := tx.RemoveLoginsBefore(ctx, r.now()); err != nil {
		return catalog.Login{}, false, err
	}
	all, err := tx.Logins(ctx)
	if err != nil {
		return catalog.Login{}, false, err
	}
	var found *catalog.Login
	for _, l := range all {
		if l.Email == req.Email && l.Fingerprint == fingerprint && l.Address == req.Address {
			found = &l // the newest one
		}
	}
	if found == nil {
		return catalog.Login{}, false, nil
	}
	return *found, true, nil
}

func (r *Registry) addLogin(ctx context.Context, tx *catalog.Tx, req LoginRequest, key publicKey, userID string) (catalog.Login, error) {
	all, err := tx.Logins(ctx)
	if err != nil {
		return catalog.Login{}, err
	}
	same, pending := 0, 0
	for _, l := range all {
		if l.UsedAt == nil {
			pending++
			if l.Email == req.Email {
				same++
			}
		}
	}
	if pending >= loginsPending || same >= loginsPerEmail {
		return catalog.Login{}, fault.Exhaustedf("too many requests to log in are open; wait until they are approved or expire, in %s at the latest", loginLife)
	}
	if userID == "" {
		userID = ident.New()
	}
	l := catalog.Login{Nonce: rand.Text()[:12], UserID: userID, Email: req.Email, Fingerprint: key.fingerprint, PublicKey: key.line,
		Address: req.Address, Note: req.Note, CreatedAt: r.now(), ExpiresAt: r.now().Add(loginLife)}
	return l, tx.InsertLogin(ctx, l)
}

// approveOpen approves requests of new users, and of users for a key that they have. A new key of a known user needs an
// operator even in LoginOpen, or an e-mail address would be enough to get into somebody's organisation.
func (r *Registry) approveOpen(ctx context.Context, tx *catalog.Tx, l catalog.Login, isNew bool) (catalog.Login, error) {
	known := isNew
	if !isNew {
		keys, err := tx.UserKeys(ctx, l.UserID)
		if err != nil {
			return l, err
		}
		for _, key := range keys {
			known = known || key.Fingerprint == l.Fingerprint
		}
	}
	if !known {
		return l, nil
	}
	return r.approve(ctx, tx, l, "")
}

// approve accepts a request: the user, the SSH key and a membership exist afterwards. orgName is the organisation to join;
// "": what the user has, or else what the options say.
func (r *Registry) approve(ctx context.Context, tx *catalog.Tx, l catalog.Login, orgName string) (catalog.Login, error) {
	now := r.now()
	user, err := tx.UserByEmail(ctx, l.Email)
	if fault.Is(err, fault.NotFound) {
		user = catalog.User{ID: l.UserID, Email: l.Email, CreatedAt: now}
		err = tx.InsertUser(ctx, user)
	}
	if err != nil {
		return l, err
	}
	l.UserID = user.ID
	key := catalog.UserKey{ID: ident.New(), UserID: user.ID, Fingerprint: l.Fingerprint, PublicKey: l.PublicKey, VerifiedAt: now, LastSeenAt: now}
	if err := tx.PutUserKey(ctx, key); err != nil {
		return l, err
	}
	if err := r.join(ctx, tx, user, orgName); err != nil {
		return l, err
	}
	l.ApprovedAt, l.ExpiresAt = &now, now.Add(loginLife)
	return l, tx.UpdateLogin(ctx, l)
}

func (r *Registry) join(ctx context.Context, tx *catalog.Tx, user catalog.User, orgName string) error {
	if orgName == "" {
		memberships, err := tx.Memberships(ctx, user.ID)
		if err != nil || len(memberships) > 0 {
			return err
		}
		orgName = r.login.Organisation
	}
	if orgName != "" {
		org, err := tx.OrganisationByName(ctx, orgName)
		if err != nil {
			return err
		}
		return tx.PutMembership(ctx, user.ID, catalog.Membership{OrgID: org.ID, Role: RoleMember}, r.now())
	}
	name, err := freeName(ctx, tx, user.Email)
	if err != nil {
		return err
	}
	org, err := r.createOrganisation(ctx, tx, name)
	if err != nil {
		return err
	}
	return tx.PutMembership(ctx, user.ID, catalog.Membership{OrgID: org.ID, Role: RoleOwner}, r.now())
}

// CheckLogin says how far a request is. fault.NotFound when it is gone: expired, refused, or made from elsewhere.
func (r *Registry) CheckLogin(ctx context.Context, req LoginRequest) (login Login, err error) {
	key, err := r.readLogin(&req)
	if err != nil {
		return login, err
	}
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		login, err = r.checkLogin(ctx, tx, req, key)
		return err
	})
	return login, err
}

func (r *Registry) checkLogin(ctx context.Context, tx *catalog.Tx, req LoginRequest, key publicKey) (Login, error) {
	open, found, err := r.openLogin(ctx, tx, req, key.fingerprint)
	if err != nil {
		return Login{}, err
	}
	if !found {
		return Login{}, fault.NotFoundf("no request to log in with this e-mail and SSH key is open here: it expired or was refused; log in again")
	}
	login := Login{Login: open, Verified: open.ApprovedAt != nil}
	if !login.Verified {
		return login, nil
	}
	keys, err := tx.UserKeys(ctx, open.UserID)
	if err != nil {
		return login, err
	}
	for _, k := range keys {
		if k.Fingerprint == open.Fingerprint {
			login.KeyID = k.ID
		}
	}
	login.Organisations, err = tx.Memberships(ctx, open.UserID)
	return login, err
}

// FinishLogin makes an API key for an approved request, once. orgName "" is the user's only organisation.
func (r *Registry) FinishLogin(ctx context.Context, req LoginRequest, label, orgName string) (key catalog.Key, text string, org catalog.Organisation, err error) {
	ssh, err := r.readLogin(&req)
	if err != nil {
		return key, "", org, err
	}
	if len(label) < labelLength {
		return key, "", org, fault.Invalidf("label must have %d characters at least", labelLength)
	}
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		login, err := r.checkLogin(ctx, tx, req, ssh)
		if fault.Is(err, fault.NotFound) || err == nil && (!login.Verified || login.UsedAt != nil) {
			return fault.New(fault.Unauthenticated, "unauthorized: no approved request to log in with this e-mail and SSH key is open here; log in again")
		}
		if err != nil {
			return err
		}
		member, err := chooseOrganisation(login.Organisations, orgName)
		if err != nil {
			return err
		}
		if org, err = tx.Organisation(ctx, member.OrgID); err != nil {
			return err
		}
		if key, text, err = r.createKey(ctx, tx, org.ID, label, func(k *catalog.Key) { k.UserID = login.UserID }); err != nil {
			return err
		}
		now := r.now()
		login.UsedAt = &now
		return tx.UpdateLogin(ctx, login.Login)
	})
	return key, text, org, err
}

func chooseOrganisation(memberships []catalog.Membership, name string) (catalog.Membership, error) {
	var names []string
	for _, m := range memberships {
		if m.OrgName == name || name == "" && len(memberships) == 1 {
			return m, nil
		}
		names = append(names, m.OrgName)
	}
	if name == "" {
		return catalog.Membership{}, fault.Invalidf("org_name is needed: this user belongs to %s", strings.Join(names, ", "))
	}
	return catalog.Membership{}, fault.NotFoundf("organisation '%s' not found among those of this user: %s", name, strings.Join(names, ", "))
}

// UsersWithKey lists the users that an SSH key was accepted for. fault.NotFound if there is none.
func (r *Registry) UsersWithKey(ctx context.Context, line string) ([]catalog.UserKey, error) {
	if err := r.loginPossible(); err != nil {
		return nil, err
	}
	key, err := parsePublicKey(line)
	if err != nil {
		return nil, err
	}
	found, err := r.catalog.UserKeysByFingerprint(ctx, key.fingerprint)
	if err == nil && len(found) == 0 {
		err = fault.NotFoundf("SSH key %s not found here", key.fingerprint)
	}
	return found, err
}
