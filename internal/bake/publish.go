package bake

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"vers/api"
)

// latest is the tag that moves to what was baked last.
const latest = "latest"

// dated are the tags that prune looks at.
var dated = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}$`)

// descriptionLabel of a Dockerfile says what an image is.
const descriptionLabel = "org.opencontainers.image.description"

// publication is what users of an image get now.
type publication struct {
	commit      string
	description string
	made        time.Time
}

// published finds what the image's tag latest is; ok is false if there is none.
func (b *baking) published(ctx context.Context) (p publication, ok bool, err error) {
	tag, err := b.Client.RepoTag(ctx, b.name, latest)
	if api.StatusOf(err) == 404 {
		return p, false, nil
	}
	if err != nil {
		return p, false, err
	}
	p = publication{commit: tag.CommitID, made: tag.UpdatedAt}
	if tag.Description != nil {
		p.description = *tag.Description
	}
	return p, true, nil
}

// publish names a commit in the image's public repository, and prunes that. The tag latest moves last.
func (b *baking) publish(ctx context.Context, built api.CommitBuild, mark string) error {
	what := built.Labels[descriptionLabel]
	if what == "" {
		what = b.name
	}
	date := b.Now.UTC().Format(time.DateOnly)
	description := fmt.Sprintf("%s; baked %s; %s", what, date, mark)
	name := b.name + " " + date
	if _, err := b.Client.UpdateCommit(ctx, built.CommitID, api.CommitUpdate{Name: &name, Description: api.Text(description)}); err != nil {
		return err
	}
	if err := b.repository(ctx, what); err != nil {
		return err
	}
	before, err := b.Client.RepoTags(ctx, b.name)
	if err != nil {
		return err
	}
	for _, tag := range []string{date, latest} {
		if err := b.point(ctx, before, tag, built.CommitID, description); err != nil {
			return fmt.Errorf("tag %s:%s: %w", b.name, tag, err)
		}
	}
	if err := b.Client.SetVisibility(ctx, b.name, true); err != nil {
		return err
	}
	b.say("published %s:%s and %s:%s, commit %s", b.name, latest, b.name, date, built.CommitID)
	return b.prune(ctx, before)
}

func (b *baking) repository(ctx context.Context, what string) error {
	_, err := b.Client.Repository(ctx, b.name)
	if api.StatusOf(err) != 404 {
		return err
	}
	_, err = b.Client.CreateRepository(ctx, api.RepositoryRequest{Name: b.name, Description: &what})
	return err
}

// point makes a tag, or moves it.
func (b *baking) point(ctx context.Context, before []api.RepoTag, tag, commit, description string) error {
	if slices.ContainsFunc(before, func(t api.RepoTag) bool { return t.TagName == tag }) {
		return b.Client.UpdateRepoTag(ctx, b.name, tag, api.RepoTagUpdate{CommitID: &commit, Description: api.Text(description)})
	}
	_, err := b.Client.CreateRepoTag(ctx, b.name, api.RepoTagRequest{TagName: tag, CommitID: commit, Description: &description})
	return err
}

// prune deletes the dated tags that are too old, and the commits that no tag names any more.
func (b *baking) prune(ctx context.Context, before []api.RepoTag) error {
	tags, err := b.Client.RepoTags(ctx, b.name)
	if err != nil {
		return err
	}
	for _, tag := range outdated(tags, b.Keep) {
		if err := b.Client.DeleteRepoTag(ctx, b.name, tag); err != nil {
			return fmt.Errorf("delete tag %s:%s: %w", b.name, tag, err)
		}
		b.say("pruned %s:%s", b.name, tag)
	}
	return b.discardUnnamed(ctx, before)
}

// outdated gives the dated tags beyond the newest ones that are kept; with keep 0 none.
func outdated(tags []api.RepoTag, keep int) []string {
	var names []string
	for _, t := range tags {
		if dated.MatchString(t.TagName) {
			names = append(names, t.TagName)
		}
	}
	slices.Sort(names)
	if keep == 0 || len(names) <= keep {
		return nil
	}
	return names[:len(names)-keep]
}

// discardUnnamed deletes those of the commits that tags named before which none of the organisation's names now.
func (b *baking) discardUnnamed(ctx context.Context, before []api.RepoTag) error {
	named := map[string]bool{}
	repositories, err := b.Client.Repositories(ctx)
	if err != nil {
		return err
	}
	for _, r := range repositories {
		tags, err := b.Client.RepoTags(ctx, r.Name)
		if err != nil {
			return err
		}
		for _, t := range tags {
			named[t.CommitID] = true
		}
	}
	plain, err := b.Client.Tags(ctx)
	if err != nil {
		return err
	}
	for _, t := range plain {
		named[t.CommitID] = true
	}
	for _, t := range before {
		if named[t.CommitID] {
			continue
		}
		named[t.CommitID] = true // two tags may have named it
		if err := b.discard(ctx, t.CommitID); err != nil {
			return err
		}
	}
	return nil
}

// discard deletes a commit, unless something needs it.
func (b *baking) discard(ctx context.Context, commit string) error {
	err := b.Client.DeleteCommit(context.WithoutCancel(ctx), commit)
	switch api.StatusOf(err) {
	case 404:
		return nil
	case 409:
		b.say("commit %s stays: %s", commit, strings.TrimSpace(err.Error()))
		return nil
	}
	return err
}
