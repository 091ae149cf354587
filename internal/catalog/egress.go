package catalog

import (
	"context"
	"encoding/json"
	"fmt"

	"vers/internal/egress"
)

// OrganisationEgress gives the egress policy of an organisation, nil if it has none of its own.
func (r *records) OrganisationEgress(ctx context.Context, orgID string) (*egress.Policy, error) {
	text, err := one(ctx, r.read, "organisation "+orgID, func(row scan) (text string, err error) { return text, row(&text) },
		`SELECT coalesce(egress, '') FROM organisations WHERE org_id = ?`, orgID)
	if err != nil || text == "" {
		return nil, err
	}
	var policy egress.Policy
	if err := json.Unmarshal([]byte(text), &policy); err != nil {
		return nil, fmt.Errorf("egress policy of organisation %s: %w", orgID, err)
	}
	return &policy, nil
}

// SetOrganisationEgress replaces the egress policy of an organisation; nil removes it.
func (r *records) SetOrganisationEgress(ctx context.Context, orgID string, policy *egress.Policy) error {
	var text []byte
	if policy != nil {
		var err error
		if text, err = json.Marshal(policy); err != nil {
			return err
		}
	}
	return change(ctx, r.write, "organisation "+orgID, `UPDATE organisations SET egress = ? WHERE org_id = ?`, nullable(string(text)), orgID)
}

// OrganisationEgresses gives the egress policies of all organisations that have one, as they are stored: to see what has
// changed.
func (r *records) OrganisationEgresses(ctx context.Context) (map[string]string, error) {
	pairs, err := list(ctx, r.read, "egress policies", func(row scan) (pair [2]string, err error) {
		return pair, row(&pair[0], &pair[1])
	}, `SELECT org_id, egress FROM organisations WHERE egress IS NOT NULL`)
	if err != nil {
		return nil, err
	}
	policies := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		policies[pair[0]] = pair[1]
	}
	return policies, nil
}
