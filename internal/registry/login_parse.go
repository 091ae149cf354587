package registry

import (
	"context"
	"crypto/rsa"
	"fmt"
	"net/mail"
	"strings"
	"unicode"

	"golang.org/x/crypto/ssh"

	"vers/internal/catalog"
	"vers/internal/fault"
	"vers/internal/ident"
)

const (
	emailLength     = 254
	publicKeyLength = 16 << 10
	rsaBits         = 2048
)

// parseEmail checks an address and gives it in lower case.
func parseEmail(text string) (string, error) {
	address, err := mail.ParseAddress(text)
	if err != nil || address.Address != text || len(text) > emailLength || !printable(text) {
		return "", fault.Invalidf("email %q is not a valid address such as name@example.org", text)
	}
	return strings.ToLower(text), nil
}

// Printable gives the first characters of what somebody sent, fit for an operator's terminal.
func Printable(text string, limit int) string {
	clean := []rune(strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return ' '
	}, text))
	return string(clean[:min(len(clean), limit)])
}

// publicKey is an SSH key in canonical form.
type publicKey struct {
	line        string // authorized_keys form, without comment
	fingerprint string // SHA256:…
}

// parsePublicKey reads one line of an authorized_keys file. Certificates, keys with options and weak keys are refused.
func parsePublicKey(line string) (publicKey, error) {
	refused := func(why string) (publicKey, error) {
		return publicKey{}, fault.Invalidf("ssh_public_key is not valid: %s", why)
	}
	line = strings.TrimSpace(line)
	if len(line) > publicKeyLength || strings.ContainsAny(line, "\r\n") {
		return refused("it must be one line, as in ~/.ssh/id_ed25519.pub")
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
	switch {
	case err != nil:
		return refused("it must be one line, as in ~/.ssh/id_ed25519.pub")
	case len(options) > 0:
		return refused("it has options in front; send the key alone")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
	case ssh.KeyAlgoRSA:
		crypto, ok := key.(ssh.CryptoPublicKey)
		if !ok {
			return refused("its numbers cannot be read")
		}
		if k, ok := crypto.CryptoPublicKey().(*rsa.PublicKey); !ok || k.N.BitLen() < rsaBits {
			return refused(fmt.Sprintf("RSA keys need %d bits at least", rsaBits))
		}
	default:
		return refused(fmt.Sprintf("keys of type %s are not accepted; ed25519, ecdsa and rsa are", key.Type()))
	}
	return publicKey{line: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), fingerprint: ssh.FingerprintSHA256(key)}, nil
}

// freeName makes a name for a user's own organisation from the e-mail address.
func freeName(ctx context.Context, tx *catalog.Tx, email string) (string, error) {
	local, _, _ := strings.Cut(email, "@")
	base := strings.Trim(strings.Map(func(c rune) rune {
		if ident.ValidName(string(c), 1) || c == '.' {
			return c
		}
		return '-'
	}, local), "-.")
	base = base[:min(len(base), ident.RepositoryName-8)]
	if base == "" {
		base = "user"
	}
	for name, n := base, 2; ; n++ {
		_, err := tx.OrganisationByName(ctx, name)
		if fault.Is(err, fault.NotFound) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
}
