package test

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vers/internal/bake"
)

// sourceAddresses are, in quotes, where this host's package sources are, also where these are private addresses, which VMs reach only if
// they are allowed to.
func sourceAddresses(t *testing.T) []string {
	t.Helper()
	host, err := bake.ReadHost(t.Context())
	must(t, err)
	texts := append(slices.Clone(host.AptSources), host.NPMRegistry)
	for _, value := range host.GoEnv {
		texts = append(texts, value)
	}
	for _, value := range host.Proxies {
		texts = append(texts, value)
	}
	var addresses []string
	for _, address := range regexp.MustCompile(`https?://[^\s,|"]+`).FindAllString(strings.Join(texts, " "), -1) {
		u, err := url.Parse(address)
		must(t, err)
		found, err := net.DefaultResolver.LookupHost(t.Context(), u.Hostname())
		if err != nil {
			t.Logf("%s: %v", u.Hostname(), err)
		}
		for _, ip := range found {
			if quoted := fmt.Sprintf("%q", ip); strings.Contains(ip, ".") && !slices.Contains(addresses, quoted) { // guests have IPv4 only
				addresses = append(addresses, quoted)
			}
		}
	}
	return addresses
}

// TestSupportedImages bakes images and forks them as documented. VERS_TEST_IMAGES names them; make test-images sets it, to
// all or to IMAGES. It is no part of the suite: the smallest image alone installs packages for minutes under TCG.
func TestSupportedImages(t *testing.T) {
	chosen := os.Getenv("VERS_TEST_IMAGES")
	if chosen == "" {
		t.Skip("takes minutes for each image: make test-images")
	}
	images := strings.Fields(chosen)
	if chosen == "all" {
		images = []string{"node", "python", "rust", "go", "pi-agent", "cc-agent"}
	}
	s := newServer(t, fmt.Sprintf("[egress]\nallow = [%s]\n", strings.Join(sourceAddresses(t), ", ")))
	began := time.Now()
	bake := newUser(t, s)
	bake.limit = time.Duration(len(images)) * 25 * time.Minute
	r := bake.try("versd images bake --verbose --config " + s.config() + " " + strings.Join(images, " "))
	if r.code != 0 {
		t.Fatalf("bake ended with %d: %s\n%s\n%s", r.code, r.stderr, tail(r.stdout), tail(s.log()))
	}
	for _, line := range strings.Split(r.stdout, "\n") {
		if regexp.MustCompile(`^[a-z-]+: (check|done|built|published)`).MatchString(line) {
			t.Log(line)
		}
	}
	t.Logf("%d images in %v", len(images), time.Since(began).Round(time.Second))

	_, taker := newOrganisation(t, s, "taker")
	works := map[string]string{"node": "node --version", "python": "python3 -m venv /tmp/env && /tmp/env/bin/pip --version", "rust": "cargo --version",
		"go": "go version", "pi-agent": "pi --version", "cc-agent": "claude --version"}
	for _, image := range images {
		forked := time.Now()
		out := taker.run("vers repo fork vers/" + image + ":latest --repo-name my-" + image + " --tag-name v1")
		vm := regexp.MustCompile(`VM: +(\S+)`).FindStringSubmatch(out)
		if !strings.Contains(out, "✓ Forked → my-"+image+":v1") || vm == nil {
			t.Fatalf("fork of %s says %s", image, out)
		}
		t.Logf("fork of %s in %v; %s", image, time.Since(forked).Round(10*time.Millisecond), taker.run("vers execute "+vm[1]+" '"+works[image]+"'"))
		left := taker.run("vers execute " + vm[1] + ` 'ls /etc/apt/apt.conf.d/00vers-host /root/.npmrc /root/.config /var/lib/vers-host /usr/local/share/ca-certificates/* 2>/dev/null;` +
			` grep -v -e "^deb http://deb.debian.org/debian" /etc/apt/sources.list; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt' || true`)
		plain := taker.run(`vers run --format json 2>/dev/null | jq -r .vm_id`)
		if want := taker.run("vers execute " + plain + " 'grep -c BEGIN /etc/ssl/certs/ca-certificates.crt'"); left != want {
			t.Errorf("of the host's settings is left in %s: %s (the default image has %s certificates)", image, left, want)
		}
		taker.run("vers kill --yes " + vm[1] + " " + plain)
	}
	again := bake.run("versd images bake --if-changed --config " + s.config() + " " + strings.Join(images, " "))
	if n := strings.Count(again, "nothing to do"); n != len(images) {
		t.Errorf("baked again although nothing has changed: %s", again)
	}
}
