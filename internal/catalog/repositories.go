package catalog

import "context"

const repositoryColumns = `repo_id, org_id, repositories.name, description, is_public, repositories.created_at, tag_count`

func readRepository(row scan) (Repository, error) {
	var r Repository
	err := row(&r.ID, &r.OrgID, &r.Name, &r.Description, &r.IsPublic, timeColumn{&r.CreatedAt}, &r.TagCount)
	return r, err
}

// InsertRepository adds a repository. A name the organisation has is fault.Conflict.
func (r *records) InsertRepository(ctx context.Context, repo Repository) error {
	return insert(ctx, r.write, "repository '"+repo.Name+"'", `INSERT INTO repositories
		(repo_id, org_id, name, description, is_public, created_at) VALUES (?, ?, ?, ?, ?, ?)`,
		repo.ID, repo.OrgID, repo.Name, repo.Description, repo.IsPublic, timeText(repo.CreatedAt))
}

// UpdateRepository writes description and visibility.
func (r *records) UpdateRepository(ctx context.Context, repo Repository) error {
	return change(ctx, r.write, "repository '"+repo.Name+"'",
		`UPDATE repositories SET description = ?, is_public = ? WHERE repo_id = ?`, repo.Description, repo.IsPublic, repo.ID)
}

// DeleteRepository removes a repository with its tags.
func (r *records) DeleteRepository(ctx context.Context, id string) error {
	return change(ctx, r.write, "repository "+id, `DELETE FROM repositories WHERE repo_id = ?`, id)
}

// Repository gives a repository of an organisation by its exact name.
func (r *records) Repository(ctx context.Context, orgID, name string) (Repository, error) {
	return one(ctx, r.read, "repository '"+name+"'", readRepository,
		`SELECT `+repositoryColumns+` FROM repositories WHERE org_id = ? AND name = ?`, orgID, name)
}

// Repositories lists the repositories of an organisation, newest first.
func (r *records) Repositories(ctx context.Context, orgID string) ([]Repository, error) {
	return list(ctx, r.read, "repositories", readRepository,
		`SELECT `+repositoryColumns+` FROM repositories WHERE org_id = ? ORDER BY created_at DESC, rowid DESC`, orgID)
}

// PublicRepositories lists the public repositories of all organisations, newest first.
func (r *records) PublicRepositories(ctx context.Context) ([]PublicRepository, error) {
	return list(ctx, r.read, "public repositories", readPublicRepository, `SELECT `+repositoryColumns+`, organisations.name
		FROM repositories JOIN organisations USING (org_id) WHERE is_public = 1
		ORDER BY repositories.created_at DESC, repositories.rowid DESC`)
}

// PublicRepository gives a public repository by the exact names of organisation and repository.
func (r *records) PublicRepository(ctx context.Context, org, name string) (PublicRepository, error) {
	return one(ctx, r.read, "public repository '"+org+"/"+name+"'", readPublicRepository, `SELECT `+repositoryColumns+`, organisations.name
		FROM organisations JOIN repositories USING (org_id)
		WHERE organisations.name = ? AND repositories.name = ? AND is_public = 1`, org, name)
}

func readPublicRepository(row scan) (PublicRepository, error) {
	var p PublicRepository
	repo, err := readRepository(func(dest ...any) error { return row(append(dest, &p.OrgName)...) })
	p.Repository = repo
	return p, err
}

const tagColumns = `tag_id, repo_id, name, commit_id, description, created_at, updated_at,
	EXISTS (SELECT 1 FROM tag_keys AS k WHERE k.tag_id = repository_tags.tag_id)`

func readTag(row scan) (RepositoryTag, error) {
	var t RepositoryTag
	err := row(&t.ID, &t.RepoID, &t.Name, &t.CommitID, &t.Description, timeColumn{&t.CreatedAt}, timeColumn{&t.UpdatedAt}, &t.Protected)
	return t, err
}

// InsertTag adds a tag to a repository. A name the repository has is fault.Conflict.
func (r *records) InsertTag(ctx context.Context, t RepositoryTag) error {
	return insert(ctx, r.write, "tag '"+t.Name+"'", `INSERT INTO repository_tags
		(tag_id, repo_id, name, commit_id, description, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		t.ID, t.RepoID, t.Name, t.CommitID, t.Description, timeText(t.CreatedAt), timeText(t.UpdatedAt))
}

// UpdateTag writes commit, description and time of change.
func (r *records) UpdateTag(ctx context.Context, t RepositoryTag) error {
	return change(ctx, r.write, "tag '"+t.Name+"'", `UPDATE repository_tags SET commit_id = ?, description = ?, updated_at = ?
		WHERE tag_id = ?`, t.CommitID, t.Description, timeText(t.UpdatedAt), t.ID)
}

// DeleteTag removes a tag.
func (r *records) DeleteTag(ctx context.Context, id string) error {
	return change(ctx, r.write, "tag "+id, `DELETE FROM repository_tags WHERE tag_id = ?`, id)
}

// Tag gives a tag of a repository by its exact name.
func (r *records) Tag(ctx context.Context, repoID, name string) (RepositoryTag, error) {
	return one(ctx, r.read, "tag '"+name+"'", readTag,
		`SELECT `+tagColumns+` FROM repository_tags WHERE repo_id = ? AND name = ?`, repoID, name)
}

// Tags lists the tags of a repository, newest first.
func (r *records) Tags(ctx context.Context, repoID string) ([]RepositoryTag, error) {
	return list(ctx, r.read, "tags", readTag,
		`SELECT `+tagColumns+` FROM repository_tags WHERE repo_id = ? ORDER BY created_at DESC, rowid DESC`, repoID)
}

// ProtectedTags lists the tags of a repository that have keys of their own (TagKeys).
func (r *records) ProtectedTags(ctx context.Context, repoID string) ([]RepositoryTag, error) {
	return list(ctx, r.read, "tags", readTag, `SELECT `+tagColumns+` FROM repository_tags
		WHERE repo_id = ? AND tag_id IN (SELECT tag_id FROM tag_keys) ORDER BY name`, repoID)
}

// TagsOfCommit lists the tags that name a commit: references (repo:tag) and names of plain tags.
func (r *records) TagsOfCommit(ctx context.Context, commitID string) ([]string, error) {
	return list(ctx, r.read, "tags", func(row scan) (ref string, err error) { return ref, row(&ref) },
		`SELECT r.name || ':' || t.name FROM repository_tags AS t JOIN repositories AS r USING (repo_id) WHERE t.commit_id = ?1
		UNION ALL SELECT name FROM commit_tags WHERE commit_id = ?1 ORDER BY 1`, commitID)
}
