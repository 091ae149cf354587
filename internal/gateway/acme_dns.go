package gateway

import (
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/libdns/rfc2136"
	"go.uber.org/zap"
)

// newDNSSolver proves names by records that it puts into a DNS server (DNS-01), by dynamic updates.
func newDNSSolver(o ACME, log *zap.Logger) (*certmagic.DNS01Solver, error) {
	data, err := os.ReadFile(o.DNSKey)
	if err != nil {
		return nil, fmt.Errorf("the key for DNS updates: %w", err)
	}
	key, err := parseTSIG(string(data))
	if err != nil {
		return nil, fmt.Errorf("the key for DNS updates: %s: %w", o.DNSKey, err)
	}
	return &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
		DNSProvider: &rfc2136.Provider{Server: o.DNSServer, KeyName: key.name, KeyAlg: key.algorithm, Key: key.secret},
		Resolvers:   o.Resolvers, TTL: time.Minute, Logger: log,
	}}, nil
}

// tsig is a key that DNS messages are signed with (RFC 8945).
type tsig struct {
	name, algorithm string
	secret          string // base64
}

// tsigFile is what tsig-keygen(8) prints and nsupdate -k reads.
var tsigFile = regexp.MustCompile(`^\s*key\s+"?([^"\s{};]+)"?\s*\{\s*algorithm\s+"?([A-Za-z0-9-]+)"?\s*;\s*secret\s+"?([A-Za-z0-9+/=]+)"?\s*;\s*\}\s*;?\s*$`)

var tsigAlgorithms = []string{"hmac-sha1", "hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"}

func parseTSIG(text string) (tsig, error) {
	m := tsigFile.FindStringSubmatch(text)
	if m == nil {
		return tsig{}, fmt.Errorf("not what tsig-keygen prints: key \"name\" { algorithm hmac-sha256; secret \"…\"; };")
	}
	key := tsig{name: m[1], algorithm: strings.ToLower(m[2]), secret: m[3]}
	for _, known := range tsigAlgorithms {
		if key.algorithm == known {
			if _, err := base64.StdEncoding.DecodeString(key.secret); err != nil {
				return tsig{}, fmt.Errorf("the secret of key %q is no base64: %w", key.name, err)
			}
			return key, nil
		}
	}
	return tsig{}, fmt.Errorf("key %q has the algorithm %s; %s are possible", key.name, key.algorithm, strings.Join(tsigAlgorithms, ", "))
}
