package test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vers/api"
)

// TestDiff changes files in a running machine between two commits: vers diff shows exactly these, without a VM being
// there any more, in both directions, and nothing between a commit and itself.
func TestDiff(t *testing.T) {
	u := newUser(t, shared)
	u.run(`vers run --vm-alias diffed --mem-size 256 --wait`)
	u.run(`vers exec diffed 'mkdir -p /srv/d/deep && cd /srv/d && seq 2000 > numbers && echo old > text && ln -s text link && : > gone && echo same > same && echo 1 > deep/leaf
i=0; while [ $i -lt 300 ]; do : > deep/file-$i; i=$((i+1)); done'`)
	var first, second, third struct {
		CommitID string `json:"commit_id"`
	}
	u.json("vers commit diffed --format json", &first)
	u.run(`vers exec diffed 'cd /srv/d && echo 2001 >> numbers && echo new > text && ln -sfn numbers link && rm gone && cat same > copy && mv copy same && chmod 600 deep/leaf && chown 7:8 deep && echo more > deep/added && rm deep/file-17'`)
	u.json("vers commit diffed --format json", &second)
	u.run(`vers exec diffed 'dd if=/dev/urandom of=/srv/d/random bs=1M count=3 status=none; rm -r /srv/d/deep'`)
	u.json("vers commit diffed --tag diffed:latest --format json", &third)
	if out := u.run("vers diff /srv -q"); !strings.HasSuffix(strings.TrimSpace(out), "\n/srv/d/random") || strings.Contains(out, "numbers") { // HEAD's latest commit
		t.Errorf("HEAD's latest commit: %s", out)
	}
	u.run("vers kill -y diffed")

	want := `M  /srv/d/deep  (directory, owner 0:0 → 7:8)
A  /srv/d/deep/added  (5 B)
D  /srv/d/deep/file-17  (0 B)
M  /srv/d/deep/leaf  (mode 0644 → 0600)
D  /srv/d/gone  (0 B)
M  /srv/d/link  (symlink, target text → numbers)
M  /srv/d/numbers  (8.7 KiB → 8.7 KiB)
M  /srv/d/text  (4 B → 4 B)
1 added, 5 changed, 2 removed; +10 B, -0 B`
	if d := cmp.Diff(want, strings.TrimSpace(u.run("vers diff "+first.CommitID+" "+second.CommitID))); d != "" {
		t.Error(d)
	}
	// One commit: against the one before it.
	if d := cmp.Diff(want, strings.TrimSpace(u.run("vers diff "+second.CommitID+" /srv"))); d != "" {
		t.Error(d)
	}
	var back api.Diff
	u.json("vers diff "+second.CommitID+" "+first.CommitID+" --format json", &back)
	if back.Added != 2 || back.Removed != 1 || back.Changed != 5 || back.Entries[1].Path != "/srv/d/deep/added" || back.Entries[1].Change != api.DiffRemoved {
		t.Errorf("the other way round: %+v", back)
	}
	if out := u.run("vers diff diffed:latest " + third.CommitID + " -q --exit-code"); out != "" {
		t.Errorf("a commit differs from itself: %s", out)
	}
	if r := u.try("vers diff " + second.CommitID + " diffed:latest /srv/d/random --exit-code"); r.code != 1 || !strings.HasPrefix(r.stdout, "A  /srv/d/random  (3.0 MiB)\n") {
		t.Errorf("%+v", r)
	}
	if r := u.try("vers diff " + second.CommitID + " 00000000-0000-4000-8000-000000000000"); r.code != 3 {
		t.Errorf("no such commit: %+v", r)
	}
	if r := u.try("vers diff " + second.CommitID + " " + first.CommitID + " /srv/../etc"); r.code != 5 {
		t.Errorf("a path with ..: %+v", r)
	}
}
