package mcp

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
	"sync"
)

// masked stands where a secret was.
const masked = "[masked]"

// Mask hides secrets, such as the API key, wherever they would get out.
type Mask struct {
	mu      sync.RWMutex
	secrets []string // longest first, with the spelling that each has in JSON
}

// Hide adds a secret. Very short ones are left alone: hiding them would only make other text unreadable.
func (m *Mask) Hide(secret string) {
	if len(secret) < 6 {
		return
	}
	quoted, err := json.Marshal(secret)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, spelling := range []string{secret, strings.Trim(string(quoted), `"`)} {
		if !slices.Contains(m.secrets, spelling) {
			m.secrets = append(m.secrets, spelling)
		}
	}
	slices.SortFunc(m.secrets, func(a, b string) int { return len(b) - len(a) })
}

// Text gives text without the secrets.
func (m *Mask) Text(text string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, secret := range m.secrets {
		text = strings.ReplaceAll(text, secret, masked)
	}
	return text
}

// JSON gives a document without the secrets.
func (m *Mask) JSON(data []byte) json.RawMessage { return json.RawMessage(m.Text(string(data))) }

// longest gives the length of the longest secret in bytes.
func (m *Mask) longest() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.secrets) == 0 {
		return 0
	}
	return len(m.secrets[0])
}

// Writer masks whole writes to w, as loggers make them.
func (m *Mask) Writer(w io.Writer) io.Writer { return maskWriter{m, w} }

type maskWriter struct {
	mask *Mask
	w    io.Writer
}

// Write implements io.Writer.
func (w maskWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.w, w.mask.Text(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}
