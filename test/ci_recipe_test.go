package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// seedApp makes the application inside the machine: a bare repository that stands for the team's, and a clone of it.
const seedApp = `set -e
git config --global user.email ci@example.org
git config --global user.name ci
git config --global init.defaultBranch main
git init -q --bare /srv/my-app.git
git clone -q /srv/my-app.git /root/my-app
cd /root/my-app
printf '#!/bin/sh\necho installed > .installed\n' > install.sh
printf '#!/bin/sh\ncp source.txt built.txt\n' > build.sh
printf '#!/bin/sh\necho migrated >> /root/database\n' > migrate.sh
printf '#!/bin/sh\ncmp source.txt built.txt && test -f .installed\n' > smoke.sh
chmod +x *.sh
printf 'built.txt\n.installed\n' > .gitignore
echo one > source.txt
git add . && git commit -qm one && git push -q origin main
./install.sh && ./build.sh && ./migrate.sh && ./smoke.sh`

// mergeToMain is what happens in the team's repository between two CI runs.
const mergeToMain = `set -e
git clone -q /srv/my-app.git /tmp/dev && cd /tmp/dev
echo "$1" > source.txt
git commit -qam "$1" && git push -q origin main
rm -rf /tmp/dev`

// TestCIRecipe runs docs/ci.md: the first machine, two merges, the team's lines, the call of the API, the way back.
func TestCIRecipe(t *testing.T) {
	u := newUser(t, shared)
	u.onHTTP()
	t.Cleanup(func() { u.try("vers repo delete my-app") })
	data, err := os.ReadFile("../docs/ci.md")
	must(t, err)
	block := func(heading, language string) string {
		_, section, ok := strings.Cut(string(data), "\n## "+heading)
		section, _, _ = strings.Cut(section, "\n## ")
		var script strings.Builder
		for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(section, -1) {
			script.WriteString(m[1])
		}
		if !ok || script.Len() == 0 {
			t.Fatalf("docs/ci.md has no %s below %q", language, heading)
		}
		return "set -euo pipefail\n" + script.String()
	}
	must(t, os.WriteFile(filepath.Join(u.dir, "seed.sh"), []byte(seedApp), 0o600))
	must(t, os.WriteFile(filepath.Join(u.dir, "merge.sh"), []byte(mergeToMain), 0o600))
	must(t, os.WriteFile(filepath.Join(u.dir, "update.sh"), []byte(block("2.", "bash")), 0o600))
	u.run(block("1.", "sh"))

	// A merge: main moves on in the machine that stands for the team's server, here inside the image itself.
	merge := func(content string) {
		u.run(`vers run-commit my-app:latest --ref --vm-alias server --wait`)
		u.run(`vers execute server bash -c "$(cat merge.sh)" merge ` + content)
		commit := u.run(`vers commit server --format json | jq -r .commit_id`)
		u.run(`vers repo tag update my-app latest --commit ` + commit)
		u.run(`vers kill server`)
	}
	merge("two")
	out := u.run(`GITHUB_SHA=1a2b3c4d5e6f7788 bash update.sh </dev/null`)
	if !strings.Contains(out, "New commit: ") {
		t.Errorf("the script does not say the new commit:\n%s", out)
	}
	u.run(block("3.", "sh"))
	if got := u.run(`vers execute my-dev "cat /root/my-app/built.txt && wc -l < /root/database"`); got != "two\n2" {
		t.Errorf("the team's machine has %q, want the build of two and two migrations", got)
	}

	// The second build of the day: the dated tag exists, the script goes on.
	merge("three")
	u.run(`GITHUB_SHA=99aabbccddeeff00 bash update.sh </dev/null`)
	u.run(`vers run-commit my-app:latest --ref --vm-alias my-dev`)
	if got := u.run(`vers execute my-dev "cat /root/my-app/built.txt"`); got != "three" {
		t.Errorf("after the second build latest holds %q", got)
	}
	u.run(block("Going back", "sh"))
	u.run(`vers run-commit my-app:latest --ref --vm-alias my-dev`)
	if got := u.run(`vers execute my-dev "cat /root/my-app/built.txt"`); got != "two" {
		t.Errorf("after the rollback latest holds %q, want two", got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
