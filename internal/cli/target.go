package cli

import (
	"context"
	"fmt"
	"maps"
	"sort"
	"strings"

	"vers/api"
	"vers/internal/cli/local"
	"vers/internal/cli/ref"
	"vers/internal/fault"
	"vers/internal/ident"
)

// target is a VM that the user named, or HEAD.
type target struct {
	ID     string
	Name   string // what the user typed, or the id
	Alias  string // alias it was found by
	IsHead bool   // nothing was typed, HEAD was used
}

// describe names the target in messages: what was typed and, behind an alias, the id.
func (t target) describe() string {
	if t.Alias != "" {
		return fmt.Sprintf("'%s' (alias '%s')", t.ID, t.Alias)
	}
	return fmt.Sprintf("'%s'", t.ID)
}

// missing rewords a 404 of the server so that it names what the user typed.
func (t target) missing(err error) error {
	if !api.IsNotFound(err) {
		return err
	}
	switch {
	case t.Alias != "":
		return rewordf(err, "VM '%s' not found: the alias '%s' stands for it, but the server does not know it (any more); drop the alias with 'vers alias rm %s'", t.ID, t.Alias, t.Alias)
	case t.IsHead:
		return rewordf(err, "VM '%s' not found: HEAD names it, but the server does not know it (any more); choose another with 'vers checkout <vm>'", t.ID)
	}
	return rewordf(err, "VM '%s' not found; 'vers status' lists the VMs there are", t.Name)
}

// head gives HEAD as a target.
func (a *App) head() (target, error) {
	id, state, err := a.folder().Head()
	switch {
	case err != nil:
		return target{}, err
	case state == local.NoProject:
		return target{}, fault.NotFoundf("no VM given, and there is no HEAD in this folder; name a VM, or start one with 'vers run'")
	case state == local.Empty:
		return target{}, fault.NotFoundf("no VM given, and HEAD is empty; name a VM, or choose one with 'vers checkout <vm>'")
	}
	return target{ID: id, Name: id, IsHead: true}, nil
}

// target finds the VM that typed names: a local alias, an id, or a unique beginning of one; HEAD if it is empty.
func (a *App) target(ctx context.Context, typed string) (target, error) {
	if typed == "" {
		return a.head()
	}
	if t, ok, err := a.localTarget(typed); ok || err != nil {
		return t, err
	}
	prefix, ok := ref.Prefix(typed)
	if !ok {
		return target{}, fault.NotFoundf("VM '%s' not found: it is neither an alias on this machine nor a VM id ('vers alias' and 'vers status' list them)", typed)
	}
	client, err := a.api()
	if err != nil {
		return target{}, err
	}
	ctx, cancel := limit(ctx, listLimit, "listing the VMs")
	defer cancel()
	vms, err := client.VMs(ctx)
	if err != nil {
		return target{}, err
	}
	ids := make([]string, len(vms))
	for i, vm := range vms {
		ids[i] = vm.VMID
	}
	id, err := unique("VM", typed, prefix, ids)
	return target{ID: id, Name: typed}, err
}

// localTarget finds aliases and full ids, which needs no server.
func (a *App) localTarget(typed string) (target, bool, error) {
	all, err := a.aliases().All()
	if err != nil {
		return target{}, false, err
	}
	if id, ok := all[typed]; ok {
		canonical, valid := ident.Parse(id)
		if !valid {
			return target{}, false, fault.Invalidf("the alias '%s' stands for %q, which is no VM id; set it again with 'vers alias set %s <vm>'", typed, id, typed)
		}
		return target{ID: canonical, Name: typed, Alias: typed}, true, nil
	}
	if id, ok := ref.ID(typed); ok {
		return target{ID: id, Name: typed}, true, nil
	}
	return target{}, false, nil
}

// unique picks the one id that begins with prefix.
func unique(noun, typed, prefix string, ids []string) (string, error) {
	matches := ref.Match(prefix, ids)
	switch len(matches) {
	case 1:
		return matches[0], nil
	case 0:
		return "", fault.NotFoundf("%s '%s' not found: no id begins so", noun, typed)
	}
	sort.Strings(matches)
	return "", fault.Invalidf("%s '%s' is ambiguous, it matches:\n  %s", noun, typed, strings.Join(matches, "\n  "))
}

// commitTarget finds the commit that typed names: an id, a unique beginning of one, repo:tag, or a plain tag.
func (a *App) commitTarget(ctx context.Context, typed string) (string, error) {
	if id, ok := ref.ID(typed); ok {
		return id, nil
	}
	client, err := a.api()
	if err != nil {
		return "", err
	}
	ctx, cancel := limit(ctx, listLimit, "finding the commit")
	defer cancel()
	if r, ok := ref.ParseReference(typed); ok {
		tag, err := client.RepoTag(ctx, r.Repo, r.Tag)
		if api.IsNotFound(err) {
			return "", rewordf(err, "commit '%s' not found: there is no such tag in your organisation", typed)
		}
		return tag.CommitID, err
	}
	if ref.IsForeign(typed) {
		return "", fault.Invalidf("'%s' is a tag of another organisation; name a commit id or a repo:tag of your own", typed)
	}
	if prefix, ok := ref.Prefix(typed); ok {
		commits, err := client.Commits(ctx)
		if err != nil {
			return "", err
		}
		ids := make([]string, len(commits))
		for i, commit := range commits {
			ids[i] = commit.CommitID
		}
		if id, err := unique("commit", typed, prefix, ids); !fault.Is(err, fault.NotFound) {
			return id, err
		}
	}
	if ident.ValidName(typed, ident.PlainTagName) {
		tag, err := client.Tag(ctx, typed)
		if !api.IsNotFound(err) {
			return tag.CommitID, err
		}
	}
	return "", fault.NotFoundf("commit '%s' not found: it is neither a commit id nor a tag ('vers commit list' and 'vers tag list' show them)", typed)
}

// newAlias checks a name that a VM is to get.
func newAlias(name string) error {
	if !ident.ValidName(name, 128) {
		return fault.Invalidf("invalid alias '%s': use 1 to 128 letters, digits, '-', '_' or '.'", name)
	}
	if _, ok := ref.ID(name); ok {
		return fault.Invalidf("invalid alias '%s': it looks like an id", name)
	}
	if reservedAliases[name] {
		return fault.Invalidf("invalid alias '%s': it is the name of a subcommand", name)
	}
	return nil
}

// reservedAliases would be taken for a subcommand where a VM is expected, as in 'vers commit list'.
var reservedAliases = map[string]bool{
	"create": true, "list": true, "ls": true, "history": true, "delete": true, "publish": true, "unpublish": true,
	"set": true, "rm": true, "help": true,
}

// setAlias lets name stand for the VM and tells when it stood for another one.
func (a *App) setAlias(ctx context.Context, name, id string) error {
	previous, err := a.aliases().Set(ctx, name, id)
	if err != nil {
		return fmt.Errorf("VM '%s' exists, but its alias '%s' was not set: %w", id, name, err)
	}
	if previous != "" && previous != id {
		a.Streams.note("note: alias '%s' now stands for this VM; it stood for %s", name, previous)
		a.label(ctx, previous, name, "")
	}
	a.label(ctx, id, "", name)
	return nil
}

// label gives a VM a name on the server too, for tools that ask there (ssh NAME@gateway), or takes it away. Nothing here
// depends on it, so that it fails is no failure.
func (a *App) label(ctx context.Context, id, from, to string) {
	client, err := a.api()
	if err != nil {
		return
	}
	ctx, cancel := limit(ctx, checkLimit, "naming the VM")
	defer cancel()
	vm, err := client.VM(ctx, id)
	if err == nil && vm.Labels[api.AliasLabel] != to && (from == "" || vm.Labels[api.AliasLabel] == from) {
		labels := maps.Clone(vm.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		if labels[api.AliasLabel] = to; to == "" {
			delete(labels, api.AliasLabel)
		}
		err = client.SetLabels(ctx, id, labels)
	}
	if err != nil {
		a.debug(fmt.Sprintf("VM %s is not called '%s' on the server: %v", id, to, err))
	}
}

// moveHead lets HEAD name the VM.
func (a *App) moveHead(id string) error {
	if err := a.folder().SetHead(id); err != nil {
		return fmt.Errorf("VM '%s' exists, but HEAD was not moved to it: %w", id, err)
	}
	return nil
}
