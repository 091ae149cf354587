package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	authorityLife   = 10 * 365 * 24 * time.Hour
	certificateLife = 90 * 24 * time.Hour
	// certificateRenew is how long before its end a certificate is replaced.
	certificateRenew = 30 * 24 * time.Hour
	// maxCertificates bounds how many are kept; making one costs less than a millisecond.
	maxCertificates = 4096
)

// authority signs certificates for the names of VMs. Its own certificate is for users to trust (GET /api/v1/gateway).
type authority struct {
	cert    *x509.Certificate
	certPEM []byte
	key     *ecdsa.PrivateKey

	mu   sync.Mutex
	made map[string]*tls.Certificate
}

// openAuthority reads the authority of a directory, or makes it.
func openAuthority(dir string) (*authority, error) {
	certPath, keyPath := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	if _, err := os.Stat(certPath); errors.Is(err, fs.ErrNotExist) {
		if err := makeAuthority(dir, certPath, keyPath); err != nil {
			return nil, fmt.Errorf("make the gateway's certificate authority: %w", err)
		}
	}
	pair, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err != nil {
		return nil, fmt.Errorf("the gateway's certificate authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%s holds no certificate authority of ours: move it away, a new one is made at the next start", certPath)
	}
	return &authority{cert: pair.Leaf, key: key, made: map[string]*tls.Certificate{},
		certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Leaf.Raw})}, nil
}

// makeAuthority writes the key first: a certificate means that both are there.
func makeAuthority(dir, certPath, keyPath string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	template, err := newTemplate("vers on "+name, authorityLife)
	if err != nil {
		return err
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := writeKey(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})); err != nil {
		return err
	}
	return writeKey(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// writeKey writes a file for us alone, whole or not at all, on stable storage.
func writeKey(path string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }() // no longer there after the rename
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

func newTemplate(name string, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life)}, nil // clocks differ
}

// certificate gives one for a host name.
func (a *authority) certificate(host string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.made[host]; c != nil && time.Until(c.Leaf.NotAfter) > certificateRenew {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	common := host
	if len(common) > 64 { // the most that a common name holds (RFC 5280); the name that counts is below
		common = "vers"
	}
	template, err := newTemplate(common, certificateLife)
	if err != nil {
		return nil, err
	}
	template.DNSNames = []string{host}
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if len(a.made) >= maxCertificates {
		for name := range a.made { // any will do
			delete(a.made, name)
			break
		}
	}
	made := &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}
	a.made[host] = made
	return made, nil
}

// newTLS is how connections are decrypted. Names that lead nowhere get no certificate, and so no connection.
func (g *Gateway) newTLS() (*tls.Config, error) {
	files := certificateFiles{cert: g.Certificate, key: g.Key}
	if err := files.check(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			host := hello.ServerName
			if host == "" {
				return nil, errors.New("the client names no server (SNI)")
			}
			ctx, cancel := context.WithTimeout(hello.Context(), handshakeLimit)
			defer cancel()
			to, err := g.route(ctx, host, 0)
			if err != nil {
				return nil, err
			}
			if c := files.load(hello); c != nil {
				return c, nil
			}
			if g.acme != nil {
				if c := g.acme.certificate(ctx, hello, to); c != nil {
					return c, nil
				}
			}
			return g.authority.certificate(host)
		},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if g.acme == nil {
				return nil, nil
			}
			return g.acme.challenge(hello), nil
		},
	}, nil
}

// certificateFiles are files that somebody else renews.
type certificateFiles struct {
	cert, key string

	mu     sync.Mutex
	loaded *tls.Certificate
	at     time.Time // the files' time that was loaded
}

func (f *certificateFiles) check() error {
	if f.cert == "" {
		return nil
	}
	_, err := f.read()
	return err
}

func (f *certificateFiles) read() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("the gateway's certificate: %w", err)
	}
	return &pair, nil
}

// load gives the certificate of the files if it is for the name that is asked for; they are read again when they have
// changed.
func (f *certificateFiles) load(hello *tls.ClientHelloInfo) *tls.Certificate {
	if f.cert == "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if info, err := os.Stat(f.cert); err == nil && (f.loaded == nil || !info.ModTime().Equal(f.at)) {
		if pair, err := f.read(); err == nil { // half replaced: the old one still does
			f.loaded, f.at = pair, info.ModTime()
		}
	}
	if f.loaded == nil || hello.SupportsCertificate(f.loaded) != nil {
		return nil
	}
	return f.loaded
}
