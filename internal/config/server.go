package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"vers/internal/egress"
)

// Server is the configuration of versd (dist/versd.toml shows every key with its meaning).
type Server struct {
	DataDir          string    `toml:"data_dir"`
	Socket           string    `toml:"socket"`
	Listen           string    `toml:"listen"`
	Accelerator      string    `toml:"accelerator"`
	QEMU             string    `toml:"qemu"`
	UIDBase          int       `toml:"uid_base"`
	MemoryReserveMiB int64     `toml:"memory_reserve_mib"`
	MemoryOvercommit float64   `toml:"memory_overcommit"`
	FlatBudgetMiB    int64     `toml:"flat_budget_mib"`
	Egress           Egress    `toml:"egress"`
	Resolvers        []string  `toml:"resolvers"` // DNS servers asked for guests, host:port; none: the host's
	Quota            Quota     `toml:"quota"`
	ShellAuth        ShellAuth `toml:"shell_auth"`
	Builder          Engines   `toml:"builder"`
	Gateway          Gateway   `toml:"gateway"`
	Sleep            Sleep     `toml:"sleep"`
	LogLevel         string    `toml:"log_level"`
}

// Quota bounds each organisation that has no quotas of its own (versd org quota); 0 is no limit.
type Quota struct {
	VMs        int64 `toml:"vms"`
	VCPUs      int64 `toml:"vcpus"`
	MemoryMiB  int64 `toml:"memory_mib"`
	StorageMiB int64 `toml:"storage_mib"` // of commits
}

// Gateway is how VMs are reached from outside (docs/access.md). "" does not listen.
type Gateway struct {
	Listen      string `toml:"listen"`      // TLS: SSH, HTTP and this server's API by name
	SSH         string `toml:"ssh"`         // SSH, user name is the VM
	Ports       []int  `toml:"ports"`       // TLS on these, each for the guest's port of the same number
	Domain      string `toml:"domain"`      // VMs are <id>.<domain>
	API         string `toml:"api"`         // name of the API; "": "api." and the domain without its first label vm
	PrivateVMs  bool   `toml:"private_vms"` // <id>.<domain> needs a key as domains do
	Certificate string `toml:"certificate"` // files for all names, renewed by somebody else; "": an authority of our own
	Key         string `toml:"key"`
	Connections int    `toml:"connections"` // open at a time from one address
	ACME        ACME   `toml:"acme"`
}

// ACME is where certificates come from that everybody trusts (RFC 8555, docs/access.md).
type ACME struct {
	Agree         bool     `toml:"agree"`          // to the authority's terms; nothing is ordered without
	Directory     string   `toml:"directory"`      // URL
	Email         string   `toml:"email"`          // of the account; "" none
	Root          string   `toml:"root"`           // file that signs the directory's own certificate; "": what the host trusts
	EAB           string   `toml:"eab"`            // id of an account there that this one belongs to; "" none
	EABKey        string   `toml:"eab_key"`        // file with its key, base64url
	RFC2136Server string   `toml:"rfc2136_server"` // DNS server that takes updates, host:port; "": no certificates for VMs
	RFC2136Key    string   `toml:"rfc2136_key"`    // file with the key for them
	Resolvers     []string `toml:"resolvers"`      // DNS servers that know the zone, host:port; none: the host's
}

// Engines is the container engine that runs Dockerfiles, and what one build may use (docs/builds.md).
type Engines struct {
	Engine     string   `toml:"engine"`     // "auto", "embedded", "docker" or "podman"
	Socket     string   `toml:"socket"`     // of Docker or Podman; "" is the engine's usual one
	Registries []string `toml:"registries"` // host:port, reached whatever egress says
	Runtime    string   `toml:"runtime"`    // OCI runtime of the embedded engine
	MemoryMiB  int64    `toml:"memory_mib"` // these are of one build
	Processes  int64    `toml:"processes"`
	DiskMiB    int64    `toml:"disk_mib"`
}

// ShellAuth says who may log in by e-mail and SSH key (docs/operating.md).
type ShellAuth struct {
	Mode         string `toml:"mode"`         // "closed", "token" or "open"
	Organisation string `toml:"organisation"` // that new users join; "": each gets one of their own
}

// Sleep says when VMs that do not say it themselves fall asleep (docs/operating.md).
type Sleep struct {
	Idle string `toml:"idle"` // without use, such as "30m"; "" never
}

// After is how long a VM may be without use; 0 for ever.
func (s Sleep) After() time.Duration {
	d, _ := time.ParseDuration(s.Idle) // checked when it was read
	return d
}

func (s Sleep) check() error {
	if s.Idle == "" {
		return nil
	}
	d, err := time.ParseDuration(s.Idle)
	if err != nil || d < 0 || d > 0 && d < 10*time.Second {
		return fmt.Errorf("configuration: sleep.idle is %q; give a time such as \"30m\" of at least 10s, or \"\" for never", s.Idle)
	}
	return nil
}

// Egress is what guests may reach (docs/network.md).
type Egress struct {
	Mode        string   `toml:"mode"`        // "internet" or "none"
	Allow       []string `toml:"allow"`       // addresses, networks or names, optionally with :port, that are allowed beyond the mode
	Deny        []string `toml:"deny"`        //
	Bandwidth   string   `toml:"bandwidth"`   // of each VM, per second and direction: "10MiB"; "" no limit
	Connections int64    `toml:"connections"` // that each VM may begin, per second; 0 no limit
}

// Policy reads the rules of a server.
func (e Egress) Policy() (egress.Policy, error) {
	policy, err := e.read()
	if err == nil {
		err = policy.Validate()
	}
	if err != nil {
		return policy, fmt.Errorf("configuration: [egress]: %w", err)
	}
	return policy, nil
}

// own reads the rules of a VM, where an allow list without a mode is all that is permitted.
func (e Egress) own() (egress.Policy, error) {
	if e.Mode == "" && len(e.Allow) > 0 {
		e.Mode = string(egress.ModeNone)
	}
	policy, err := e.read()
	if err == nil {
		err = policy.ValidateBelow()
	}
	return policy, err
}

func (e Egress) read() (policy egress.Policy, err error) {
	if policy, err = egress.New(e.Mode, e.Allow, e.Deny); err != nil {
		return policy, err
	}
	if e.Bandwidth != "" {
		policy.BytesPerSecond, err = egress.ParseBandwidth(e.Bandwidth)
	}
	policy.ConnectionsPerSecond = e.Connections
	return policy, err
}

// DefaultServer is the configuration without a file.
func DefaultServer() Server {
	return Server{
		DataDir: "/var/lib/vers", Socket: "/run/vers/versd.sock", Listen: "127.0.0.1:7878",
		Accelerator: "auto", QEMU: "qemu-system-x86_64", UIDBase: 700000,
		MemoryReserveMiB: 1024, MemoryOvercommit: 1, FlatBudgetMiB: 65536,
		Egress: Egress{Mode: "internet"}, ShellAuth: ShellAuth{Mode: "closed"}, LogLevel: "info",
		Builder: Engines{Engine: "auto", Runtime: "runc", MemoryMiB: 2048, Processes: 4096, DiskMiB: 20480},
		Gateway: Gateway{Listen: "127.0.0.1:7443", SSH: "127.0.0.1:2222", Domain: "vm.localhost", Connections: 1024,
			ACME: ACME{Directory: "https://acme-v02.api.letsencrypt.org/directory"}},
	}
}

// LoadServer reads the configuration file over the defaults. A missing file is an error only if it was named.
func LoadServer(path string, named bool) (Server, error) {
	c := DefaultServer()
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
	case err != nil:
		return c, fmt.Errorf("read the configuration: %w", err)
	default:
		decoder := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
		if err := decoder.Decode(&c); err != nil {
			return c, describe(path, err)
		}
	}
	return c, c.Check()
}

func describe(path string, err error) error {
	var strict *toml.StrictMissingError
	var decode *toml.DecodeError
	switch {
	case errors.As(err, &strict) && len(strict.Errors) > 0:
		line, column := strict.Errors[0].Position()
		return fmt.Errorf("%s:%d:%d: unknown key %s", path, line, column, strings.Join(strict.Errors[0].Key(), "."))
	case errors.As(err, &decode):
		line, column := decode.Position()
		return fmt.Errorf("%s:%d:%d: %s", path, line, column, decode.Error())
	}
	return fmt.Errorf("%s: %w", path, err)
}

// Check refuses values that make no sense, each with the key's name, and makes paths absolute.
func (c *Server) Check() error {
	var err error
	if c.DataDir, err = filepath.Abs(c.DataDir); err != nil {
		return err
	}
	switch {
	case c.Accelerator != "auto" && c.Accelerator != "kvm" && c.Accelerator != "tcg":
		return fmt.Errorf("configuration: accelerator is %q; auto, kvm or tcg is possible", c.Accelerator)
	case c.MemoryOvercommit <= 0:
		return fmt.Errorf("configuration: memory_overcommit is %g; it must be above 0, 1 is safe", c.MemoryOvercommit)
	case c.MemoryReserveMiB < 0 || c.FlatBudgetMiB < 0:
		return errors.New("configuration: memory_reserve_mib and flat_budget_mib cannot be negative")
	case c.Quota.VMs < 0 || c.Quota.VCPUs < 0 || c.Quota.MemoryMiB < 0 || c.Quota.StorageMiB < 0:
		return errors.New("configuration: the values of [quota] cannot be negative; 0 is no limit")
	case c.ShellAuth.Mode != "closed" && c.ShellAuth.Mode != "token" && c.ShellAuth.Mode != "open":
		return fmt.Errorf("configuration: shell_auth.mode is %q; closed, token or open is possible", c.ShellAuth.Mode)
	case c.Egress.Mode != "internet" && c.Egress.Mode != "none":
		return fmt.Errorf("configuration: egress.mode is %q; internet or none is possible", c.Egress.Mode)
	}
	if _, err := c.Egress.Policy(); err != nil {
		return err
	}
	for _, resolver := range c.Resolvers {
		if _, _, err := net.SplitHostPort(resolver); err != nil {
			return fmt.Errorf("configuration: resolvers: %q is not host:port: %w", resolver, err)
		}
	}
	if err := errors.Join(c.Builder.check(), c.Gateway.check(), c.Sleep.check()); err != nil {
		return err
	}
	if c.Listen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("configuration: listen: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("configuration: listen is %q, which is not a loopback address: others reach the API through the gateway, as https://%s (gateway.listen)", c.Listen, c.Gateway.APIHost())
	}
	return nil
}

func (e Engines) check() error {
	switch {
	case e.Engine != "auto" && e.Engine != "embedded" && e.Engine != "docker" && e.Engine != "podman":
		return fmt.Errorf("configuration: builder.engine is %q; auto, embedded, docker or podman is possible", e.Engine)
	case e.Engine == "embedded" && e.Socket != "":
		return errors.New("configuration: builder.socket is for Docker and Podman; the embedded engine has none")
	case e.MemoryMiB < 16 || e.Processes < 16 || e.DiskMiB < 16:
		return errors.New("configuration: memory_mib, processes and disk_mib of [builder] must be 16 or more")
	}
	for _, registry := range e.Registries {
		if _, _, err := net.SplitHostPort(registry); err != nil {
			return fmt.Errorf("configuration: builder.registries: %q is not host:port: %w", registry, err)
		}
	}
	return nil
}

// APIHost is the name by which the gateway leads to the API. Clients of the original make the domain of VMs of it: api.D
// gives vm.D (spec/api.md 4.4).
func (g Gateway) APIHost() string {
	if g.API != "" {
		return strings.ToLower(g.API)
	}
	return "api." + strings.TrimPrefix(strings.ToLower(g.Domain), "vm.")
}

func (g Gateway) check() error {
	for key, address := range map[string]string{"listen": g.Listen, "ssh": g.SSH} {
		if address == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("configuration: gateway.%s: %w", key, err)
		}
	}
	for _, port := range g.Ports {
		if port < 1 || port > 65535 {
			return fmt.Errorf("configuration: gateway.ports holds %d; ports are from 1 to 65535", port)
		}
	}
	switch {
	case len(g.Ports) > 0 && g.Listen == "":
		return errors.New("configuration: gateway.ports needs gateway.listen, for the address")
	case g.Domain == "" || strings.HasPrefix(g.Domain, ".") || strings.ContainsAny(g.Domain, " :/"):
		return fmt.Errorf("configuration: gateway.domain is %q; it must be a domain such as vm.example.org", g.Domain)
	case (g.Certificate == "") != (g.Key == ""):
		return errors.New("configuration: gateway.certificate and gateway.key go together")
	case g.Connections < 16:
		return errors.New("configuration: gateway.connections must be 16 or more")
	}
	return g.checkACME()
}

func (g Gateway) checkACME() error {
	a := g.ACME
	if !a.Agree {
		if a.Directory != DefaultServer().Gateway.ACME.Directory || len(a.Resolvers) > 0 || a.Email != "" || a.Root != "" || a.EAB != "" || a.EABKey != "" || a.RFC2136Server != "" || a.RFC2136Key != "" {
			return errors.New("configuration: [gateway.acme] is set, but not agree = true: nothing is ordered of an authority without agreement to its terms of service; read them, or leave the rest out")
		}
		return nil
	}
	u, err := url.Parse(a.Directory)
	switch {
	case g.Listen == "":
		return errors.New("configuration: gateway.acme needs gateway.listen: without it nothing shows certificates")
	case err != nil || u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("configuration: gateway.acme.directory is %q; it must be the https address of an ACME server's directory", a.Directory)
	case a.Email != "" && !strings.Contains(a.Email, "@"):
		return fmt.Errorf("configuration: gateway.acme.email is %q, which is no e-mail address", a.Email)
	case (a.EAB == "") != (a.EABKey == ""):
		return errors.New("configuration: gateway.acme.eab and gateway.acme.eab_key go together")
	case (a.RFC2136Server == "") != (a.RFC2136Key == ""):
		return errors.New("configuration: gateway.acme.rfc2136_server and gateway.acme.rfc2136_key go together")
	case a.RFC2136Server != "" && strings.HasSuffix("."+strings.ToLower(g.Domain), ".localhost"):
		return fmt.Errorf("configuration: gateway.acme.rfc2136_server gives certificates to *.<gateway.domain>, but no authority certifies %s; set gateway.domain", g.Domain)
	case len(a.Resolvers) > 0 && a.RFC2136Server == "":
		return errors.New("configuration: gateway.acme.resolvers is for gateway.acme.rfc2136_server, which is not set")
	}
	if a.RFC2136Server != "" {
		if _, _, err := net.SplitHostPort(a.RFC2136Server); err != nil {
			return fmt.Errorf("configuration: gateway.acme.rfc2136_server: %q is not host:port: %w", a.RFC2136Server, err)
		}
	}
	for _, resolver := range a.Resolvers {
		if _, _, err := net.SplitHostPort(resolver); err != nil {
			return fmt.Errorf("configuration: gateway.acme.resolvers: %q is not host:port: %w", resolver, err)
		}
	}
	return nil
}
