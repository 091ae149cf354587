package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vers/internal/fault"
)

// Credentials are the content of ~/.versrc. Only its owner may read that file.
type Credentials struct {
	APIKey     string `json:"apiKey"`
	Email      string `json:"email,omitempty"`
	SSHKeyPath string `json:"sshKeyPath,omitempty"`
	URL        string `json:"url,omitempty"` // server the key is for
}

func credentialsPath(home string) string { return filepath.Join(home, ".versrc") }

// LoadCredentials reads the file below home; without it the result is empty.
func LoadCredentials(home string) (Credentials, error) {
	var c Credentials
	path := credentialsPath(home)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(data) == 0 {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read the stored key: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fault.Invalidf("the file %s with the stored key is damaged (%v); repair or remove it", path, err)
	}
	return c, nil
}

// Save writes the file.
func (c Credentials) Save(home string) error {
	return writeJSON(credentialsPath(home), c, 0o600)
}
