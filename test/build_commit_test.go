package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vers/api"
)

// TestBuildCommit builds a server of two stages on the default image into a commit with its process warm: a VM made of it
// answers at once. Again, all of it comes from the cache.
func TestBuildCommit(t *testing.T) {
	u := newUser(t, shared)
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(u.dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), mode))
	}
	write("app/Dockerfile", `FROM scratch AS compile
RUN mkdir /out && printf 'built on %s' "$(uname -s)" > /out/built && ln -s built /out/link && chown 7:8 /out/built
RUN <<EOF
#!/usr/bin/perl
print "perl as $>\n";
EOF

FROM scratch
ENV GREETING="hello there" PATH=/srv/app:$PATH
ARG WHO=nobody
WORKDIR /srv/app
COPY --chmod=755 serve .
COPY --from=compile /out/ /srv/out/
RUN useradd --system app && chown -R app /srv/app
USER app
RUN echo "$GREETING, $WHO" > greeting; id -un >> greeting
# the server goes on in the commit
RUN nohup serve > log 2>&1 &
EXPOSE 7000
CMD ["serve"]
`, 0o644)
	write("app/serve", "#!/bin/sh\necho started >> starts\nwhile :; do date +%s > alive; sleep 0.2; done\n", 0o644)
	write("app/.dockerignore", "secret\n", 0o644)
	write("app/secret", "not sent", 0o644)
	const build = "vers build app --mem-size 256 --build-arg WHO=vers --ready 'test -s alive' --tag warm:latest"
	first := u.try(build)
	if first.code != 0 || !strings.Contains(first.stdout, "Tag: warm:latest\nSteps: 7 (0 cached)\n") || !strings.Contains(first.stderr, "Step 3/15 : RUN <<EOF") || !strings.Contains(first.stderr, "perl as 0\n") {
		t.Fatalf("%+v\n%s", first, tail(shared.log()))
	}
	if list := u.run("vers status -q"); list != "" {
		t.Errorf("VMs are left: %s", list)
	}
	var again api.CommitBuild
	began := time.Now()
	u.json(build+" --format json", &again)
	took := time.Since(began)
	if !again.Cached || again.CachedSteps != 7 || !strings.Contains(first.stdout, again.CommitID) {
		t.Errorf("%+v", again)
	}
	t.Logf("from the cache in %v", took)
	if took > 5*time.Second { // about a second where nothing else runs
		t.Errorf("from the cache in %v", took)
	}
	u.run("vers run-commit warm:latest --ref --vm-alias warm --wait")
	for script, want := range map[string]string{
		"cat greeting":                                    "hello there, vers\napp",
		"echo $GREETING; id -un; pwd":                     "hello there\napp\n/srv/app",
		"command -v serve; cat starts":                    "/srv/app/serve\nstarted",
		"stat -c '%u:%g %N' /srv/out/built /srv/out/link": "7:8 '/srv/out/built'\n0:0 '/srv/out/link' -> 'built'",
		"test -e /srv/app/secret || echo not sent":        "not sent",
	} {
		if got := u.run("vers exec warm '" + strings.ReplaceAll(script, "'", `'\''`) + "'"); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	// It goes on from the commit: nobody has started it.
	eventually(t, "the server in the commit is alive", func() error {
		if r := u.try(`vers exec warm 'test $(( $(date +%s) - $(cat alive) )) -le 2'`); r.code != 0 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	u.run("vers kill -y warm")

	// One changed line runs what follows it.
	u.run(`sed -i 's/hello there/good evening/' app/Dockerfile`)
	var changed api.CommitBuild
	u.json(build+" --format json", &changed)
	if changed.CachedSteps != 2 || changed.Steps != 7 || changed.CommitID == again.CommitID {
		t.Errorf("%+v", changed)
	}
	write("app/Dockerfile", "FROM warm:latest\nUSER 0\nRUN echo $GREETING; exit 9\n", 0o644)
	failed := u.try("vers build app --no-cache")
	if failed.code != 1 || !strings.Contains(failed.stderr, "good evening\n") || !strings.Contains(failed.stderr, "Error: step 3/3, line 3 (RUN echo $GREETING; exit 9): the command ended with 9") {
		t.Errorf("%+v", failed)
	}
	// Interrupted, it leaves nothing.
	write("app/Dockerfile", "FROM scratch\nRUN echo begun; sleep 1000\n", 0o644)
	r := u.try("vers build app --mem-size 256 2> out & p=$!; until grep -qx begun out; do sleep 0.1; done; kill -TERM $p; wait $p")
	if r.code != 143 {
		t.Errorf("%+v", r)
	}
	eventually(t, "nothing of the interrupted build is left", func() error {
		if left := u.run("vers status -q"); left != "" {
			return fmt.Errorf("VMs %s", left)
		}
		return nil
	})
}
