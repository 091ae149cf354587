package registry

import (
	"context"
	"strings"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

// Reference names a tag of a repository of the own organisation.
type Reference struct {
	Repository string
	Tag        string
}

func (r Reference) String() string { return r.Repository + ":" + r.Tag }

// ParseReference reads "repo:tag": exactly one colon, a valid name on both sides, nothing else (spec/cli.md 3.4).
func ParseReference(s string) (Reference, error) {
	repository, tag, _ := strings.Cut(s, ":")
	if ident.ValidName(repository, ident.RepositoryName) && ident.ValidName(tag, ident.TagName) {
		return Reference{Repository: repository, Tag: tag}, nil
	}
	if org, rest, ok := strings.Cut(repository, "/"); ok && org != "" && rest != "" && tag != "" {
		return Reference{}, fault.Invalidf("Invalid ref format: %q names another organisation's repository; "+
			"fork it first ('vers repo fork'), then use repo_name:tag_name", s)
	}
	return Reference{}, fault.Invalidf("Invalid ref format: %q; expected repo_name:tag_name, "+
		"both of letters, digits, '-', '_' or '.', at most %d and %d characters", s, ident.RepositoryName, ident.TagName)
}

// Resolve finds the commit that a reference points at now.
func (r *Registry) Resolve(ctx context.Context, orgID string, ref Reference) (string, error) {
	tag, err := r.Tag(ctx, orgID, ref)
	return tag.CommitID, err
}

// readTag finds repository and tag of a reference.
func readTag(ctx context.Context, c reader, orgID string, ref Reference) (repo catalog.Repository, tag catalog.RepositoryTag, err error) {
	if err = CheckTagName(ref.Tag); err != nil {
		return repo, tag, err
	}
	if repo, err = readRepository(ctx, c, orgID, ref.Repository); err != nil {
		return repo, tag, err
	}
	tag, err = c.Tag(ctx, repo.ID, ref.Tag)
	if fault.Is(err, fault.NotFound) {
		err = noTag(ref)
	}
	return repo, tag, err
}

func noTag(ref Reference) error {
	return fault.NotFoundf("tag '%s' not found in repository '%s'", ref.Tag, ref.Repository)
}

// reader is what both the catalogue and a transaction can look up.
type reader interface {
	Repository(ctx context.Context, orgID, name string) (catalog.Repository, error)
	Tag(ctx context.Context, repoID, name string) (catalog.RepositoryTag, error)
	VisibleCommit(ctx context.Context, id string) (catalog.Commit, error)
}

func readRepository(ctx context.Context, c reader, orgID, name string) (catalog.Repository, error) {
	if err := CheckRepositoryName(name); err != nil {
		return catalog.Repository{}, err
	}
	repo, err := c.Repository(ctx, orgID, name)
	if fault.Is(err, fault.NotFound) {
		err = fault.NotFoundf("repository '%s' not found", name)
	}
	return repo, err
}
