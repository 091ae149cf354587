package registry

import (
	"context"
	"slices"
	"time"

	"vers/internal/catalog"
	"vers/internal/fault"
)

// What a history says happened to a tag.
const (
	ActionCreate   = "create"
	ActionMove     = "move"
	ActionRollback = "rollback"
	ActionDelete   = "delete"
)

// TagHistory lists what happened to a tag, newest first. It is there after the tag was deleted too, as long as there is
// the repository; a name that never was a tag is fault.NotFound.
func (r *Registry) TagHistory(ctx context.Context, orgID string, ref Reference) ([]catalog.TagEvent, error) {
	if err := CheckTagName(ref.Tag); err != nil {
		return nil, err
	}
	repo, err := readRepository(ctx, r.catalog, orgID, ref.Repository)
	if err != nil {
		return nil, err
	}
	events, err := r.catalog.TagEvents(ctx, repo.ID, ref.Tag)
	if err == nil && len(events) == 0 {
		err = noTag(ref)
	}
	return events, err
}

// Rollback says where a tag goes back to.
type Rollback struct {
	Entry    int64  // where this entry of the history left the tag; 0: the commit before the present one
	Expected string // fault.Conflict if the tag points at another commit now; "" any
}

// RollBackTag moves a tag back in one step and says from where to where. Without an entry, a second rollback goes one
// commit further back, not forth again. A commit that is gone is fault.Conflict, and the tag stays where it is.
func (r *Registry) RollBackTag(ctx context.Context, by catalog.Key, ref Reference, back Rollback) (from, to string, err error) {
	err = r.catalog.InTx(ctx, func(tx *catalog.Tx) error {
		repo, err := readRepository(ctx, tx, by.OrgID, ref.Repository)
		if err != nil {
			return err
		}
		events, err := tx.TagEvents(ctx, repo.ID, ref.Tag)
		if err != nil {
			return err
		}
		_, tag, err := readTag(ctx, tx, by.OrgID, ref)
		if fault.Is(err, fault.NotFound) && len(events) > 0 {
			return fault.NotFoundf("tag '%s' was deleted at %s, when it pointed at commit %s; make it again with 'vers repo tag create %s %s <commit>'",
				ref, events[0].At.Format(time.RFC3339), events[0].FromCommit, ref.Repository, ref.Tag)
		}
		if err != nil {
			return err
		}
		if err := r.mayMove(ctx, tx, by, ref, tag); err != nil {
			return err
		}
		if err := expect(ref.String(), tag.CommitID, back.Expected); err != nil {
			return err
		}
		from = tag.CommitID
		if to, err = target(ref, events, back.Entry); err != nil {
			return err
		}
		if _, err := ownCommit(ctx, tx, by.OrgID, to); fault.Is(err, fault.NotFound) {
			return fault.Conflictf("tag '%s' cannot go back to commit %s: that commit was deleted; choose an entry of the tag's history whose commit is still there",
				ref, to)
		} else if err != nil {
			return err
		}
		return r.moveTag(ctx, tx, by, tag, to, ActionRollback)
	})
	return from, to, err
}

// target finds the commit that a rollback goes to. events are newest first.
func target(ref Reference, events []catalog.TagEvent, entry int64) (string, error) {
	if entry == 0 {
		if commit, ok := previous(events); ok {
			return commit, nil
		}
		return "", fault.Conflictf("tag '%s' has pointed at one commit only since it was made: there is nothing to go back to", ref)
	}
	i := slices.IndexFunc(events, func(e catalog.TagEvent) bool { return e.ID == entry })
	if i < 0 {
		return "", fault.NotFoundf("entry %d not found in the history of tag '%s'", entry, ref)
	}
	if events[i].ToCommit == "" {
		return "", fault.Invalidf("entry %d of the history of tag '%s' is its deletion: there is no commit to go back to", entry, ref)
	}
	return events[i].ToCommit, nil
}

// previous gives the commit that a tag pointed at before the present one. What a rollback took back does not count: the
// line of commits ends where the rollback went to.
func previous(events []catalog.TagEvent) (string, bool) {
	var line []string
	for _, e := range slices.Backward(events) {
		if len(line) == 0 && e.FromCommit != "" {
			line = append(line, e.FromCommit) // what came before is no longer kept
		}
		switch e.Action {
		case ActionDelete:
			line = nil
			continue
		case ActionRollback:
			for n := len(line) - 1; n >= 0; n-- {
				if line[n] == e.ToCommit {
					line = line[:n]
					break
				}
			}
		}
		line = append(line, e.ToCommit)
	}
	if len(line) < 2 {
		return "", false
	}
	return line[len(line)-2], true
}
