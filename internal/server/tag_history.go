package server

import (
	"context"
	"net/http"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/registry"
)

func (s *Server) routeTagHistory() {
	const path = "/repositories/{name}/tags/{tag}"
	add(s, operation{method: http.MethodGet, path: path + "/history", id: "repository-tag-history",
		summary: "[ours] Who moved a tag when, from which commit to which, newest first", tag: "Repositories"}, s.tagHistory)
	add(s, operation{method: http.MethodPost, path: path + "/rollback", creates: true, id: "roll-back-repository-tag",
		summary: "[ours] Move a tag back to an earlier commit at once", tag: "Repositories"}, s.rollBackTag)
	add(s, operation{method: http.MethodGet, path: path + "/protection", id: "get-repository-tag-protection",
		summary: "[ours] Which API keys may move or delete a tag", tag: "Repositories"}, s.tagProtection)
	add(s, operation{method: http.MethodPatch, path: path + "/protection", id: "protect-repository-tag",
		summary: "[ours] Let only the named API keys move, roll back or delete a tag", tag: "Repositories"}, s.protectTag)
}

func (s *Server) tagHistory(ctx context.Context, in *TagInput) (*output[api.TagHistory], error) {
	events, err := s.Registry.TagHistory(ctx, orgOf(ctx), in.reference())
	if err != nil {
		return nil, err
	}
	history := api.TagHistory{Repository: in.Name, TagName: in.Tag, Reference: in.reference().String(), Entries: make([]api.TagEvent, 0, len(events))}
	for _, e := range events {
		history.Entries = append(history.Entries, api.TagEvent{EntryID: e.ID, At: e.At.UTC(), Action: e.Action,
			FromCommitID: optional(e.FromCommit), ToCommitID: optional(e.ToCommit), KeyID: e.KeyID, KeyName: e.KeyName,
			Description: e.Description, Available: e.Available})
	}
	return reply(history), nil
}

type rollBackInput struct {
	TagInput
	Body *api.TagRollbackRequest
}

func (s *Server) rollBackTag(ctx context.Context, in *rollBackInput) (*output[api.TagRollbackResult], error) {
	var back registry.Rollback
	if b := in.Body; b != nil {
		var err error
		if back.Expected, err = optionalCommitID(b.ExpectedCommitID); err != nil {
			return nil, err
		}
		if b.EntryID != nil {
			if back.Entry = *b.EntryID; back.Entry < 1 {
				return nil, fault.Invalidf("entry_id is %d; entries of a history are numbered from 1", back.Entry)
			}
		}
	}
	ctx, cancel := detach(ctx)
	defer cancel()
	from, to, err := s.Registry.RollBackTag(ctx, callerKey(ctx), in.reference(), back)
	if err != nil {
		return nil, err
	}
	return reply(api.TagRollbackResult{Reference: in.reference().String(), CommitID: to, FromCommitID: from}), nil
}

func (s *Server) tagProtection(ctx context.Context, in *TagInput) (*output[api.TagProtection], error) {
	keys, err := s.Registry.TagKeys(ctx, orgOf(ctx), in.reference())
	if err != nil {
		return nil, err
	}
	return reply(showProtection(in.reference(), keys)), nil
}

type protectTagInput struct {
	TagInput
	Body api.TagProtectionRequest
}

func (s *Server) protectTag(ctx context.Context, in *protectTagInput) (*output[api.TagProtection], error) {
	ctx, cancel := detach(ctx)
	defer cancel()
	keys, err := s.Registry.ProtectTag(ctx, callerKey(ctx), in.reference(), in.Body.Keys)
	if err != nil {
		return nil, err
	}
	return reply(showProtection(in.reference(), keys)), nil
}

func showProtection(ref registry.Reference, keys []catalog.Key) api.TagProtection {
	shown := api.TagProtection{Reference: ref.String(), Protected: len(keys) > 0, Keys: make([]api.KeyRef, 0, len(keys))}
	for _, key := range keys {
		shown.Keys = append(shown.Keys, api.KeyRef{KeyID: key.ID, KeyName: key.Name})
	}
	return shown
}
