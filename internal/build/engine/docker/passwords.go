package docker

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"

	"github.com/moby/moby/api/types/registry"
)

// dockerHub is how the file with passwords calls docker.io.
const dockerHub = "https://index.docker.io/v1/"

// passwords reads Options.AuthFile: names and passwords by registry, as they are called in that file. Those that a helper
// program keeps are not in it. A file that is not there, or is none, has none.
func (e *Engine) passwords() map[string]registry.AuthConfig {
	if e.o.AuthFile == "" {
		return nil
	}
	text, err := os.ReadFile(e.o.AuthFile)
	if err != nil {
		return nil
	}
	var file struct {
		Auths map[string]struct{ Auth, IdentityToken string }
	}
	if json.Unmarshal(text, &file) != nil {
		return nil
	}
	found := map[string]registry.AuthConfig{}
	for name, entry := range file.Auths {
		pair, err := base64.StdEncoding.DecodeString(entry.Auth)
		user, password, ok := strings.Cut(strings.TrimRight(string(pair), "\x00"), ":")
		if err == nil && ok || entry.IdentityToken != "" {
			found[name] = registry.AuthConfig{Username: user, Password: password, IdentityToken: entry.IdentityToken, ServerAddress: name}
		}
	}
	return found
}

// passwordOf finds what the file has for the registry with this domain, whichever way it is called there.
func (e *Engine) passwordOf(domain string) (registry.AuthConfig, bool) {
	for name, auth := range e.passwords() {
		host := strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://")
		host, _, _ = strings.Cut(host, "/")
		if host == domain || name == dockerHub && domain == "docker.io" {
			return auth, true
		}
	}
	return registry.AuthConfig{}, false
}
