package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is wrong with [gateway.acme] is said at the start, with the key's name.
func TestACME(t *testing.T) {
	t.Parallel()
	const agreed = "[gateway.acme]\nagree = true\n"
	for _, tt := range []struct{ name, text, wrong string }{
		{"off", "[gateway.acme]\nagree = false\n", ""},
		{"public", agreed + `email = "operator@example.org"`, ""},
		{"all", "[gateway]\ndomain = \"vm.example.org\"\n" + agreed + `directory = "https://ca.example.org/dir"
root = "/etc/vers/ca.pem"
eab = "id"
eab_key = "/etc/vers/eab"
rfc2136_server = "192.0.2.1:53"
rfc2136_key = "/etc/vers/tsig.key"
resolvers = ["192.0.2.1:53"]`, ""},
		{"no agreement", "[gateway.acme]\nemail = \"operator@example.org\"", "not agree = true"},
		{"no agreement with another server", "[gateway.acme]\ndirectory = \"https://ca.example.org/dir\"", "not agree = true"},
		{"no listener", "[gateway]\nlisten = \"\"\n" + agreed, "needs gateway.listen"},
		{"no directory", agreed + `directory = ""`, `gateway.acme.directory is ""`},
		{"no TLS", agreed + `directory = "http://ca.example.org/dir"`, "https address"},
		{"no address", agreed + `email = "operator"`, "gateway.acme.email"},
		{"half an account", agreed + `eab = "id"`, "eab_key go together"},
		{"half of DNS", agreed + `rfc2136_server = "192.0.2.1:53"`, "rfc2136_key go together"},
		{"DNS without a domain", agreed + "rfc2136_server = \"192.0.2.1:53\"\nrfc2136_key = \"/k\"", "no authority certifies vm.localhost"},
		{"DNS without a port", "[gateway]\ndomain = \"vm.example.org\"\n" + agreed + "rfc2136_server = \"192.0.2.1\"\nrfc2136_key = \"/k\"", "not host:port"},
		{"resolvers without DNS", agreed + `resolvers = ["192.0.2.1:53"]`, "gateway.acme.resolvers"},
		{"unknown key", agreed + `mail = "x"`, "unknown key gateway.acme.mail"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "versd.toml")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := LoadServer(path, true)
			if (err == nil) != (tt.wrong == "") || err != nil && !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("%v, want %q", err, tt.wrong)
			}
		})
	}
}

// The file that is installed has every key, with its default.
func TestInstalledConfiguration(t *testing.T) {
	t.Parallel()
	c, err := LoadServer("../../dist/versd.toml", true)
	if err != nil {
		t.Fatal(err)
	}
	if want := DefaultServer().Gateway.ACME; c.Gateway.ACME.Directory != want.Directory || c.Gateway.ACME.Agree {
		t.Errorf("%+v", c.Gateway.ACME)
	}
}
