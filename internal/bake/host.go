package bake

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"vers/internal/image"
	"vers/internal/program"
)

// Where a host's settings are, in the folder that is built and in the machine.
const (
	hostFolder = ".vers-host"
	hostPath   = "/var/lib/vers-host"
	enterName  = "enter"
	leaveName  = "leave"
)

// enterScript puts a host's settings to their places in a machine, leaveScript takes them out of it.
var (
	//go:embed enter.sh
	enterScript []byte
	//go:embed leave.sh
	leaveScript []byte
)

// Host is what builds need to reach the package sources as this host does. Nothing of it is secret: what was on the disk or in
// the memory of a machine can be found there by who owns a fork.
type Host struct {
	AptSources  []string          // lines of sources.list
	AptOptions  []string          // lines of apt.conf
	CAs         map[string][]byte // certificates that this host trusts beyond those of Debian, by file name
	NPMRegistry string            // "": npm's own
	GoEnv       map[string]string // GOPROXY and the like
	Proxies     map[string]string // http_proxy and the like
	Warnings    []string          // what was left out
}

// localCAs is where Debian has the certificates that an administrator adds.
const localCAs = "/usr/local/share/ca-certificates"

// ReadHost finds out how this host reaches its package sources.
func ReadHost(ctx context.Context) (*Host, error) {
	h := &Host{CAs: map[string][]byte{}, GoEnv: map[string]string{}, Proxies: map[string]string{}}
	for _, line := range image.HostSources() {
		if h.public("package source", line) {
			h.AptSources = append(h.AptSources, line)
		}
	}
	options, err := image.HostAptOptions(ctx)
	if err != nil {
		return nil, err
	}
	for _, line := range options {
		if h.public("setting of apt", line) && !fileOption.MatchString(line) {
			h.AptOptions = append(h.AptOptions, line)
		}
	}
	found, err := filepath.Glob(filepath.Join(localCAs, "*.crt"))
	if err != nil {
		return nil, err
	}
	for i, path := range found {
		if h.CAs[fmt.Sprintf("ca-%d.crt", i)], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	if registry := npmRegistry(ctx); registry != "" && h.public("npm registry", registry) {
		h.NPMRegistry = registry
	}
	for name, value := range goEnv(ctx) {
		if value != "" && h.public(name, value) {
			h.GoEnv[name] = value
		}
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if value := os.Getenv(name); value != "" && h.public(name, value) {
			h.Proxies[name] = value
		}
	}
	return h, nil
}

var (
	// fileOption are settings of apt that name files of this host.
	fileOption = regexp.MustCompile(`(?i)^Acquire::[^ ]*(CaInfo|CaPath|SslCert|SslKey|CrlFile|IssuerCert)`)
	// login is a user name or password in an address.
	login = regexp.MustCompile(`://[^/\s"']*@`)
)

// public says that a setting holds no password; else it is left out, with a warning that does not repeat it.
func (h *Host) public(what, value string) bool {
	if !login.MatchString(value) {
		return true
	}
	h.Warnings = append(h.Warnings, "a "+what+" with a password is left out: images are public")
	return false
}

// npmRegistry is where npm on this host gets packages from; "" where that is not known.
func npmRegistry(ctx context.Context) string {
	for _, name := range []string{"NPM_CONFIG_REGISTRY", "npm_config_registry"} {
		if value := os.Getenv(name); value != "" {
			return value
		}
	}
	cmd := exec.CommandContext(ctx, "npm", "config", "get", "registry")
	cmd.Dir = "/" // no project's settings
	out, err := program.Run(ctx, cmd)
	if err != nil {
		return ""
	}
	lines := strings.Fields(string(out))
	if len(lines) == 0 {
		return ""
	}
	address := lines[len(lines)-1]
	if u, err := url.Parse(address); err != nil || u.Host == "" {
		return ""
	}
	return address
}

// goEnv is where Go on this host gets modules from.
func goEnv(ctx context.Context) map[string]string {
	names := []string{"GOPROXY", "GOSUMDB", "GONOSUMDB"}
	values := map[string]string{}
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"env", "-json"}, names)...)
	cmd.Dir = "/"
	if out, err := program.Run(ctx, cmd); err == nil && json.Unmarshal(out, &values) == nil {
		return values
	}
	for _, name := range names {
		values[name] = os.Getenv(name)
	}
	return values
}

// files are the settings as the scripts find them.
func (h *Host) files() map[string][]byte {
	// A machine that is built is not used after a crash: packages need not be synced one by one.
	apt := append([]string{`Acquire::Languages "none";`, `DPkg::Options:: "--force-unsafe-io";`}, h.AptOptions...)
	files := map[string][]byte{enterName: enterScript, leaveName: leaveScript}
	if len(h.AptSources) > 0 {
		apt = append(apt, fmt.Sprintf("Dir::Etc::SourceList %q;", hostPath+"/sources.list"))
		files["sources.list"] = lines(h.AptSources)
	}
	files["apt.conf"] = lines(apt)
	npm := []string{"omit-lockfile-registry-resolved=true", "update-notifier=false"}
	if h.NPMRegistry != "" {
		npm = append(npm, "registry="+h.NPMRegistry)
	}
	if len(h.CAs) > 0 {
		npm = append(npm, "cafile=/etc/ssl/certs/ca-certificates.crt") // npm has a list of its own
	}
	files["npmrc"] = lines(npm)
	var env []string
	for name, value := range h.GoEnv {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	files["goenv"] = lines(env)
	for name, data := range h.CAs {
		files[name] = data
	}
	return files
}

func lines(list []string) []byte {
	if len(list) == 0 {
		return nil
	}
	return []byte(strings.Join(list, "\n") + "\n")
}
