package registry

import (
	"context"
	"strings"

	"vers/internal/catalog"
	"vers/internal/fault"
)

// PendingLogins lists the requests to log in that wait for an operator, oldest first.
func (r *Registry) PendingLogins(ctx context.Context) ([]catalog.Login, error) {
	all, err := r.catalog.Logins(ctx)
	if err != nil {
		return nil, err
	}
	var pending []catalog.Login
	for _, l := range all {
		if l.ApprovedAt == nil && r.now().Before(l.ExpiresAt) {
			pending = append(pending, l)
		}
	}
	return pending, nil
}

// ApproveLogin lets the request that a nonce or e-mail means log in, once and soon. orgName is the organisation to join;
// "": what the user has, or else the one of the options, or else a new one.
func (r *Registry) ApproveLogin(ctx context.Context, which, orgName string) (catalog.Login, error) {
	l, err := r.pendingLogin(ctx, which)
	if err != nil {
		return l, err
	}
	return l, r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		l, err = r.approve(ctx, tx, l, orgName)
		return err
	})
}

// RefuseLogin ends the request that a nonce or e-mail means.
func (r *Registry) RefuseLogin(ctx context.Context, which string) (catalog.Login, error) {
	l, err := r.pendingLogin(ctx, which)
	if err != nil {
		return l, err
	}
	return l, r.catalog.DeleteLogin(ctx, l.Nonce)
}

// pendingLogin finds a request by its nonce, or by an e-mail that has only one: two requests for an e-mail may come from
// two people.
func (r *Registry) pendingLogin(ctx context.Context, which string) (catalog.Login, error) {
	pending, err := r.PendingLogins(ctx)
	if err != nil {
		return catalog.Login{}, err
	}
	var found []catalog.Login
	for _, l := range pending {
		if strings.EqualFold(l.Nonce, which) || l.Email == strings.ToLower(which) {
			found = append(found, l)
		}
	}
	switch len(found) {
	case 0:
		return catalog.Login{}, fault.NotFoundf("no request to log in by '%s' waits; they expire after %s", which, loginLife)
	case 1:
		return found[0], nil
	}
	return catalog.Login{}, fault.Conflictf("%d requests to log in by '%s' wait: name one by its code", len(found), which)
}
