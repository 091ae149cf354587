package gateway

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/machine"
)

// sshKeys are the gateway's own host key, and the key that signs it and those of guests. Who trusts the signing key
// knows every VM without ever being asked.
type sshKeys struct {
	authority ssh.Signer
	host      ssh.Signer
}

func openSSHKeys(dir string) (*sshKeys, error) {
	var keys sshKeys
	var err error
	if keys.authority, err = openSSHKey(filepath.Join(dir, "authority"), "vers SSH authority"); err != nil {
		return nil, err
	}
	if keys.host, err = openSSHKey(filepath.Join(dir, "host"), "vers gateway"); err != nil {
		return nil, err
	}
	return &keys, nil
}

// openSSHKey reads a key, or makes it.
func openSSHKey(path, comment string) (ssh.Signer, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		block, err := ssh.MarshalPrivateKey(key, comment)
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		data = pem.EncodeToMemory(block)
		if err := writeKey(path, data); err != nil {
			return nil, fmt.Errorf("keep the gateway's SSH key: %w", err)
		}
	} else if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("the gateway's SSH key %s: %w", path, err)
	}
	return signer, nil
}

// certificateHours is how long a host certificate is good. It is made anew for every connection.
const certificateHours = 24

// certify makes a host certificate for names.
func (k *sshKeys) certify(host ssh.Signer, id string, names []string) (ssh.Signer, error) {
	var serial [8]byte
	rand.Read(serial[:]) //nolint:errcheck // never fails
	now := time.Now()
	cert := &ssh.Certificate{
		Key: host.PublicKey(), Serial: binary.BigEndian.Uint64(serial[:]), CertType: ssh.HostCert, KeyId: id, ValidPrincipals: names,
		ValidAfter: uint64(now.Add(-time.Hour).Unix()), ValidBefore: uint64(now.Add(certificateHours * time.Hour).Unix()),
	}
	if err := cert.SignCert(rand.Reader, k.authority); err != nil {
		return nil, err
	}
	return ssh.NewCertSigner(cert, host)
}

// hostKeys gives what the gateway shows for a VM, or for itself without one: certificate and key. The certificate is left
// out if it would not be for the name that the client has said, which "" is none.
func (g *Gateway) hostKeys(vm *machine.VM, name string) ([]ssh.Signer, error) {
	host, id, names := g.ssh.host, "vers gateway", g.ownNames()
	if vm != nil {
		signer, err := ssh.ParsePrivateKey([]byte(vm.SSHHostKey))
		if err != nil {
			return nil, fmt.Errorf("host key of VM %s: %w", vm.ID, err)
		}
		host, id, names = signer, vm.ID, g.vmNames(*vm)
	}
	if name != "" && !slices.Contains(names, strings.ToLower(name)) {
		return []ssh.Signer{host}, nil
	}
	cert, err := g.ssh.certify(host, id, names)
	if err != nil {
		return nil, err
	}
	return []ssh.Signer{cert, host}, nil
}

// SSHSuffix ends the names that 'vers ssh-config' makes for VMs.
const SSHSuffix = ".vers"

// vmNames are the names that a VM may be reached by.
func (g *Gateway) vmNames(vm machine.VM) []string {
	names := []string{vm.ID, g.VMHost(vm.ID, 0), vm.ID + SSHSuffix}
	if alias := strings.ToLower(vm.Labels[machine.AliasLabel]); alias != "" {
		names = append(names, alias, alias+SSHSuffix)
	}
	return names
}

// ownNames are the names that the gateway may be reached by.
func (g *Gateway) ownNames() []string {
	names := []string{GatewayHost, g.Domain, "localhost", "127.0.0.1", "::1"}
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
	}
	return names
}

// GatewayHost is a name that the gateway's own host key is always signed for (HostKeyAlias in ssh_config).
const GatewayHost = "gateway.vers"

// SSHAuthority is the public key that signs host keys, in authorized_keys form.
func (g *Gateway) SSHAuthority() string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(g.ssh.authority.PublicKey())))
}

// Authority is the certificate that signs those of VMs' host names, PEM.
func (g *Gateway) Authority() string { return string(g.authority.certPEM) }
