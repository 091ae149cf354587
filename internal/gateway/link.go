package gateway

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const (
	linkParameter = "vers_link"
	linkCookie    = "vers-link"
)

// How long a link opens a private name: if nothing else is asked for, and at most.
const (
	LinkLife    = 24 * time.Hour
	MaxLinkLife = 30 * 24 * time.Hour
)

// links signs names. A link is good for one host name, until a time, for everybody who has it:
//
//	base64url( big-endian seconds since 1970, 8 bytes | HMAC-SHA256 of them and the host name )
//
// The host name's VM is signed too, so that a name which comes to another VM is not open with old links.
type links struct{ key []byte }

func openLinks(path string) (links, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, sha256.Size)
		rand.Read(key) //nolint:errcheck // never fails
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return links{}, err
		}
		err = writeKey(path, key)
	}
	if err == nil && len(key) != sha256.Size {
		err = fmt.Errorf("%s is damaged: remove it; a new one is made, and links that were given out end", path)
	}
	return links{key}, err
}

func (l links) sign(host, vmID string, ends time.Time) string {
	token := binary.BigEndian.AppendUint64(nil, uint64(ends.Unix()))
	return base64.RawURLEncoding.EncodeToString(append(token, l.sum(token, host, vmID)...))
}

func (l links) sum(head []byte, host, vmID string) []byte {
	mac := hmac.New(sha256.New, l.key)
	mac.Write(head)
	mac.Write([]byte(host + "\x00" + vmID))
	return mac.Sum(nil)
}

func (l links) check(token string, to route) (ends time.Time, ok bool) {
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(data) != 8+sha256.Size {
		return time.Time{}, false
	}
	ends = time.Unix(int64(binary.BigEndian.Uint64(data)), 0)
	good := subtle.ConstantTimeCompare(data[8:], l.sum(data[:8], to.host, to.vm.ID)) == 1
	return ends, good && time.Now().Before(ends)
}

// take reports whether a request has the cookie of a good link, and removes it.
func (l links) take(r *http.Request, to route) bool {
	cookies := r.Cookies()
	good, ours := false, false
	for _, c := range cookies {
		if c.Name == linkCookie {
			_, ok := l.check(c.Value, to)
			good, ours = good || ok, true
		}
	}
	if ours {
		r.Header.Del("Cookie")
		for _, c := range cookies {
			if c.Name != linkCookie {
				r.AddCookie(c)
			}
		}
	}
	return good
}

// takeLink answers a request that carries a good link: it becomes a cookie, and leaves the address, which the guest and
// other sites would see.
func (g *Gateway) takeLink(w http.ResponseWriter, r *http.Request, to route) bool {
	query := r.URL.Query()
	ends, ok := g.links.check(query.Get(linkParameter), to)
	if !ok || !to.private {
		return false
	}
	query.Del(linkParameter)
	u := *r.URL
	u.RawQuery = query.Encode()
	if u.Path == "" || u.Path[0] != '/' || len(u.Path) > 1 && (u.Path[1] == '/' || u.Path[1] == '\\') {
		u.Path = "/" // another site's name, to a browser
	}
	http.SetCookie(w, &http.Cookie{Name: linkCookie, Value: g.links.sign(to.host, to.vm.ID, ends), Path: "/", Expires: ends,
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, u.RequestURI(), http.StatusFound)
	return true
}
