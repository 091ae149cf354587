package test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"vers/internal/gateway/acmetest"
)

// TestPublicCertificate configures a server as an operator does and reaches its API with the certificate that it gets;
// after it was killed the certificate is still there, and the ACME server is not needed.
func TestPublicCertificate(t *testing.T) {
	p := acmetest.New(t, 24*60*60)
	s := newServer(t, fmt.Sprintf("[gateway]\nlisten = \"127.0.0.1:0\"\nssh = \"\"\ndomain = \"vm.versd.example\"\n"+
		"[gateway.acme]\nagree = true\nemail = \"operator@example.org\"\ndirectory = %q\nroot = %q\n", p.Directory(), p.Root()))
	socket := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.socket())
	}}}
	describe := func() (g struct {
		TLSAddress    string `json:"tls_address"`
		ACMEDirectory string `json:"acme_directory"`
	}) {
		t.Helper()
		resp, err := socket.Get("http://vers/api/v1/gateway")
		must(t, err)
		defer resp.Body.Close()
		must(t, json.NewDecoder(resp.Body).Decode(&g))
		return g
	}
	get := func() (string, error) {
		browser := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: p.Roots()},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", describe().TLSAddress)
			}}}
		resp, err := browser.Get("https://api.versd.example/openapi.yaml")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	works := func() {
		t.Helper()
		eventually(t, "the API by name", func() error {
			body, err := get()
			if err == nil && len(body) < 1000 {
				err = fmt.Errorf("%d bytes", len(body))
			}
			return err
		})
	}
	g := describe()
	if g.ACMEDirectory != p.Directory() {
		t.Errorf("GET /gateway: %+v", g)
	}
	p.Validates(g.TLSAddress)
	works()
	info, err := os.Stat(filepath.Join(s.data(), "gateway", "acme"))
	must(t, err)
	if info.Mode().Perm() != 0o700 {
		t.Errorf("%s is %v", info.Name(), info.Mode())
	}
	s.kill()
	p.Close()
	must(t, s.start())
	works()
	if p.Orders() != 1 {
		t.Errorf("%d orders, want one", p.Orders())
	}
}
