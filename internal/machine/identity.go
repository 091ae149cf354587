package machine

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"runtime"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/internal/fault"
	"vers/internal/guest"
)

// minMemoryMiB is the least RAM in which the default kernel, the agent and a shell run.
const minMemoryMiB = 128

// maxVCPUs bounds the vCPUs of one VM: 16 everywhere (the usual range of vers.toml), more on larger hosts.
func maxVCPUs() int64 { return max(16, int64(runtime.NumCPU())) }

// renew gives a guest its own identity and waits until its agent confirms: entropy, clock, hostname, machine id, SSH
// host key, environment. Without the confirmation the VM is not handed out (design 2.4).
func (m *Manager) renew(ctx context.Context, v *vm, reason string, extra map[string]string) error {
	r := v.snapshot()
	env, err := m.Catalog.Env(ctx, r.OrgID)
	if err != nil {
		return err
	}
	env = maps.Clone(env)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, extra)
	login, err := ssh.ParsePrivateKey([]byte(r.SSHKey))
	if err != nil {
		return fmt.Errorf("read the SSH key of VM %s: %w", r.ID, err)
	}
	want := guest.Identity{
		VMID: r.ID, Hostname: "vers-" + r.ID[:8], MachineID: machineID(), Entropy: randomBytes(256),
		Env: env, AuthorizedKeys: []string{string(ssh.MarshalAuthorizedKey(login.PublicKey()))},
		SSHHostKey: r.SSHHostKey, Reason: reason, Nonce: hex.EncodeToString(randomBytes(16)),
		Process: processOf(r.Config.Image),
	}
	ctx, cancel := context.WithTimeout(ctx, m.ReadyLimit)
	defer cancel()
	ctx, release := whileRunning(ctx, v.instance)
	defer release()
	agent := v.watchedAgent()
	for {
		want.Time = time.Now()
		got, err := agent.Renew(ctx, want)
		if err == nil {
			trace(ctx, r.ID, MomentConfirmed)
			if got.VMID != want.VMID || got.Nonce != want.Nonce {
				return fmt.Errorf("VM %s: the agent confirmed another identity (%s)", r.ID, got.VMID)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			if ended(ctx) {
				return fmt.Errorf("VM '%s' ended before its agent confirmed the VM's identity", r.ID)
			}
			return fault.New(fault.Timeout, "VM '%s': the agent did not confirm the VM's identity within %s: %v", r.ID, m.ReadyLimit, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// watchedAgent is the agent's client that tells when the guest answers. The caller holds op or is the only one who knows v.
func (v *vm) watchedAgent() *guest.Client {
	network, id := v.network, v.snapshot().ID
	return guest.New(func(ctx context.Context) (net.Conn, error) {
		conn, err := network.DialAgent(ctx)
		if err == nil {
			trace(ctx, id, MomentAnswers)
		}
		return conn, err
	})
}

// newSSHKeys makes a VM's login key and its host key, both in OpenSSH's private format.
func newSSHKeys() (login, host string, err error) {
	for _, key := range []*string{&login, &host} {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return "", "", err
		}
		block, err := ssh.MarshalPrivateKey(private, "vers")
		if err != nil {
			return "", "", err
		}
		*key = string(pem.EncodeToMemory(block))
	}
	return login, host, nil
}
