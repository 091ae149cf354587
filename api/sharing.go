package api

import "time"

// Tag is a plain tag of an organisation: a name for a commit outside of any repository (older clients' commit_tags).
type Tag struct {
	TagID       string    `json:"tag_id" format:"uuid"`
	TagName     string    `json:"tag_name"`
	CommitID    string    `json:"commit_id" format:"uuid"`
	Description *string   `json:"description"`
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"`
}

// TagList is the answer of GET /commit_tags.
type TagList struct {
	Tags []Tag `json:"tags" nullable:"false"`
}

// TagRequest is the body of POST /commit_tags.
type TagRequest struct {
	TagName     string  `json:"tag_name" doc:"1 to 64 letters, digits, '-', '_' or '.'"`
	CommitID    string  `json:"commit_id"`
	Description *string `json:"description,omitempty" nullable:"true"`
}

// TagCreated is the answer of POST /commit_tags.
type TagCreated struct {
	TagID    string `json:"tag_id" format:"uuid"`
	TagName  string `json:"tag_name"`
	CommitID string `json:"commit_id" format:"uuid"`
}

// TagUpdate is the body of PATCH /commit_tags/{name}; commit, description or both.
type TagUpdate struct {
	CommitID         *string        `json:"commit_id,omitempty" nullable:"true" doc:"Commit to move the tag to"`
	Description      OptionalString `json:"description,omitzero" doc:"Absent: keep. Null: clear"`
	ExpectedCommitID *string        `json:"expected_commit_id,omitempty" nullable:"true" doc:"[ours] The change is refused (409) if the tag points at another commit now"`
}

// PublicRepository is a public repository as everybody sees it.
type PublicRepository struct {
	RepoID      string    `json:"repo_id" format:"uuid"`
	OrgName     string    `json:"org_name"`
	Name        string    `json:"name"`
	FullName    string    `json:"full_name" doc:"org/name"`
	Description *string   `json:"description"`
	CreatedAt   time.Time `json:"created_at"`
	TagCount    int64     `json:"tag_count" doc:"[ours]"`
}

// PublicRepositoryList is the answer of GET /public/repositories.
type PublicRepositoryList struct {
	Repositories []PublicRepository `json:"repositories" nullable:"false"`
}

// ForkRequest is the body of POST /repositories/fork: a tag of a public repository, and what to call the fork.
type ForkRequest struct {
	SourceOrg  string  `json:"source_org"`
	SourceRepo string  `json:"source_repo"`
	SourceTag  string  `json:"source_tag"`
	RepoName   *string `json:"repo_name,omitempty" nullable:"true" doc:"Repository to put the tag into, made private if it is missing; default source_repo"`
	TagName    *string `json:"tag_name,omitempty" nullable:"true" doc:"Tag to make; default source_tag"`
}

// Fork is the answer of POST /repositories/fork: everything in it is the caller's own.
type Fork struct {
	VMID      string `json:"vm_id" format:"uuid" doc:"A running VM"`
	CommitID  string `json:"commit_id" format:"uuid" doc:"A new commit of that VM"`
	RepoName  string `json:"repo_name"`
	TagName   string `json:"tag_name"`
	Reference string `json:"reference" doc:"repo:tag"`
}

// KeyRef names an API key.
type KeyRef struct {
	KeyID   string `json:"key_id"`
	KeyName string `json:"key_name"`
}

// TagProtection says who may move, roll back or delete a tag [ours].
type TagProtection struct {
	Reference string   `json:"reference" doc:"repo:tag"`
	Protected bool     `json:"protected"`
	Keys      []KeyRef `json:"keys" nullable:"false" doc:"The only keys that may; empty when the tag is not protected"`
}

// TagProtectionRequest is the body of PATCH /repositories/{name}/tags/{tag}/protection [ours]. It replaces the list.
type TagProtectionRequest struct {
	Keys []string `json:"keys" nullable:"false" doc:"Ids or names of API keys of the organisation. Empty: no protection"`
}

// What happened to a tag.
const (
	TagCreate   = "create"
	TagMove     = "move"
	TagRollback = "rollback"
	TagDelete   = "delete"
)

// TagEvent is one entry of a tag's history [ours].
type TagEvent struct {
	EntryID      int64     `json:"entry_id" doc:"Names the entry; later ones are larger"`
	At           time.Time `json:"at"`
	Action       string    `json:"action" doc:"create, move, rollback or delete"`
	FromCommitID *string   `json:"from_commit_id" doc:"What the tag pointed at before; null when it was made"`
	ToCommitID   *string   `json:"to_commit_id" doc:"What it pointed at then; null when it was deleted"`
	KeyID        string    `json:"key_id" doc:"API key that did it"`
	KeyName      string    `json:"key_name" doc:"Its name at that time"`
	Description  *string   `json:"description" doc:"The tag's description then"`
	Available    bool      `json:"available" doc:"The commit of to_commit_id still exists, so that the tag can be rolled back to it"`
}

// TagHistory is the answer of GET /repositories/{name}/tags/{tag}/history [ours]: newest entry first. It outlives the
// tag as long as there is the repository; the newest 1000 entries of a tag are kept.
type TagHistory struct {
	Repository string     `json:"repository"`
	TagName    string     `json:"tag_name"`
	Reference  string     `json:"reference"`
	Entries    []TagEvent `json:"entries" nullable:"false"`
}

// TagRollbackRequest is the body of POST /repositories/{name}/tags/{tag}/rollback [ours]; it may be left out.
type TagRollbackRequest struct {
	EntryID          *int64  `json:"entry_id,omitempty" nullable:"true" doc:"Go to where this entry of the history left the tag. Absent: to the commit before; again, and it is the one before that"`
	ExpectedCommitID *string `json:"expected_commit_id,omitempty" nullable:"true" doc:"Refused (409) if the tag points at another commit now"`
}

// TagRollbackResult is the answer of POST /repositories/{name}/tags/{tag}/rollback [ours].
type TagRollbackResult struct {
	Reference    string `json:"reference" doc:"repo:tag"`
	CommitID     string `json:"commit_id" format:"uuid" doc:"What the tag points at now"`
	FromCommitID string `json:"from_commit_id" format:"uuid" doc:"What it pointed at before"`
}
