package agent

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"vers/internal/fault"
	"vers/internal/guest"
)

// Files of the agent in the guest. The event is for guest software (docs/guest-protocol.md), the state is what an
// agent that was restarted needs.
const (
	runDir    = "/run/vers"
	eventFile = "/run/vers/identity.json"
	stateFile = "/run/vers/agent-state.json"
	hookDir   = "/etc/vers/clone.d"
	hookLog   = "/run/vers/clone.d.log"
)

// minEntropy is the least a Renew must bring: twice what the kernel's generator holds.
const minEntropy = 64

// event is the clone event. Guest software watches its file; the rename makes it appear at once.
type event struct {
	Version    int       `json:"version"`
	Generation int64     `json:"generation"` // 1 at the first start, one more at each restore and branch
	Reason     string    `json:"reason"`     // run, restore or branch
	VMID       string    `json:"vm_id"`
	Hostname   string    `json:"hostname"`
	Time       time.Time `json:"time"`
}

// identity is who this guest is at present.
type identity struct {
	renewing sync.Mutex // one Renew at a time

	mu         sync.RWMutex
	id         guest.Identity
	generation int64
	hostKey    ssh.Signer
	authorized map[string]bool // marshalled public keys
}

// state is what survives a restart of the agent.
type state struct {
	Identity   guest.Identity `json:"identity"`
	Generation int64          `json:"generation"`
}

// load takes over from an agent before this one. Without one there is nothing to load.
func (i *identity) load(root string) {
	data, err := os.ReadFile(filepath.Join(root, stateFile))
	if err != nil {
		return
	}
	var st state
	if json.Unmarshal(data, &st) != nil {
		return
	}
	if signer, keys, err := parseKeys(st.Identity); err == nil {
		i.set(st, signer, keys)
	}
}

func (i *identity) set(st state, signer ssh.Signer, keys map[string]bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.id, i.generation, i.hostKey, i.authorized = st.Identity, st.Generation, signer, keys
}

func (i *identity) current() (vmID string, generation int64) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.id.VMID, i.generation
}

// process says how commands are run that do not say it themselves.
func (i *identity) process() guest.Process {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.id.Process
}

// multiline gives the variables that /etc/environment cannot hold.
func (i *identity) multiline() map[string]string {
	i.mu.RLock()
	defer i.mu.RUnlock()
	vars := map[string]string{}
	for k, v := range i.id.Env {
		if !oneLine(v) {
			vars[k] = v
		}
	}
	return vars
}

var (
	hostnamePattern  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	machineIDPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

func checkIdentity(id guest.Identity) error {
	switch {
	case id.VMID == "":
		return fault.Invalidf("the identity has no VM id")
	case !hostnamePattern.MatchString(id.Hostname):
		return fault.Invalidf("host name %q is not 1 to 63 letters, digits and inner hyphens", id.Hostname)
	case !machineIDPattern.MatchString(id.MachineID) || strings.Trim(id.MachineID, "0") == "":
		return fault.Invalidf("machine id %q is not 32 lower-case hexadecimal digits", id.MachineID)
	case len(id.Entropy) < minEntropy:
		return fault.Invalidf("the identity brings %d bytes of entropy, at least %d are needed", len(id.Entropy), minEntropy)
	case id.Time.Year() < 2020:
		return fault.Invalidf("the identity's time %s cannot be now", id.Time)
	}
	switch id.Reason {
	case guest.ReasonRun, guest.ReasonRestore, guest.ReasonBranch:
	default:
		return fault.Invalidf("unknown reason %q of an identity", id.Reason)
	}
	for k := range id.Env {
		if !validName(k) {
			return fault.Invalidf("environment variable %q: a name is letters, digits and '_', and does not start with a digit", k)
		}
	}
	if err := checkVars(id.Process.Env); err != nil {
		return err
	}
	return checkVars(id.Env)
}

func parseKeys(id guest.Identity) (ssh.Signer, map[string]bool, error) {
	signer, err := ssh.ParsePrivateKey([]byte(id.SSHHostKey))
	if err != nil {
		return nil, nil, fault.Invalidf("read the identity's SSH host key: %w", err)
	}
	keys := map[string]bool{}
	for _, line := range id.AuthorizedKeys {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, nil, fault.Invalidf("read the identity's authorized key %.60q: %w", line, err)
		}
		keys[string(key.Marshal())] = true
	}
	return signer, keys, nil
}

// renew makes the guest another one. It confirms only after every step has succeeded, and starts no process before.
func (s *Server) renew(conn net.Conn, body json.RawMessage) error {
	var id guest.Identity
	if err := decode(body, &id); err != nil {
		return err
	}
	if err := checkIdentity(id); err != nil {
		return err
	}
	s.identity.renewing.Lock()
	defer s.identity.renewing.Unlock()
	conf, rsaKey, err := s.assume(id)
	if err != nil {
		s.log.Error("identity not renewed", "vm", id.VMID, "error", err)
		return err
	}
	if err := accept(conn, conf); err != nil {
		return nil // not confirmed: the caller does not use this guest
	}
	s.background.Go(func() { s.afterRenew(id, conf.Generation, rsaKey) })
	return nil
}

// assume takes the steps of a Renew. The order matters: keys are made only after the generator is fresh, and the event
// is the last thing, when everything it announces is true.
func (s *Server) assume(id guest.Identity) (conf guest.Confirmation, rsaKey bool, err error) {
	signer, keys, err := parseKeys(id)
	if err != nil {
		return conf, false, err
	}
	bootID := ""
	steps := []struct {
		what string
		do   func() error
	}{
		{"reseed the random generator", func() error { return s.config.System.AddEntropy(id.Entropy) }},
		{"set the clock", func() error { return s.config.System.SetClock(id.Time) }},
		{"set the host name", func() error { return s.setHostname(id.Hostname) }},
		{"set the machine id", func() error { return s.setMachineID(id.MachineID) }},
		{"set the boot id", func() (err error) {
			if bootID, err = newBootID(); err != nil {
				return err
			}
			return s.config.System.SetBootID(bootID)
		}},
		{"replace the image's SSH host keys", func() (err error) {
			rsaKey, err = s.replaceHostKeys(id.Hostname)
			return err
		}},
		{"write " + environmentFile, func() error { return s.writeEnvironment(id.Env) }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return conf, false, fmt.Errorf("renew the identity of VM %s: %s: %w", id.VMID, step.what, err)
		}
	}
	_, generation := s.identity.current()
	generation++
	nonce := id.Nonce
	id.Entropy, id.Nonce = nil, "" // not to be kept
	st := state{Identity: id, Generation: generation}
	if err := s.announce(st); err != nil {
		return conf, false, fmt.Errorf("renew the identity of VM %s: write the clone event: %w", id.VMID, err)
	}
	s.identity.set(st, signer, keys)
	return guest.Confirmation{VMID: id.VMID, Nonce: nonce, Generation: generation, BootID: bootID}, rsaKey, nil
}

// wake tells the kernel what it has missed while the VM slept. Without a body it has not slept.
func (s *Server) wake(body json.RawMessage) error {
	if len(body) == 0 {
		return nil
	}
	var w guest.Wake
	if err := decode(body, &w); err != nil {
		return err
	}
	switch {
	case len(w.Entropy) < minEntropy:
		return fault.Invalidf("waking brings %d bytes of entropy, at least %d are needed", len(w.Entropy), minEntropy)
	case w.Time.Year() < 2020:
		return fault.Invalidf("the time of waking %s cannot be now", w.Time)
	}
	if err := s.config.System.AddEntropy(w.Entropy); err != nil {
		return fmt.Errorf("wake: reseed the random generator: %w", err)
	}
	if err := s.config.System.SetClock(w.Time); err != nil {
		return fmt.Errorf("wake: set the clock: %w", err)
	}
	return nil
}

// Rehearse gives a guest that has no identity yet a passing one. A VM is restored from the state after boot: what is laid
// out and mounted then need not be in every clone, where it is the larger part of a Renew under emulation.
func (s *Server) Rehearse() error {
	s.identity.renewing.Lock()
	defer s.identity.renewing.Unlock()
	if _, generation := s.identity.current(); generation > 0 {
		return nil // an agent before this one was given an identity
	}
	bootID, err := newBootID()
	if err != nil {
		return err
	}
	machineID := strings.ReplaceAll(bootID, "-", "")
	if old, err := os.ReadFile(s.path("/etc/machine-id")); err == nil && machineIDPattern.Match(bytes.TrimSpace(old)) {
		machineID = string(bytes.TrimSpace(old)) // the image's init goes by it already
	}
	return errors.Join(
		s.setHostname(passingHostname),
		s.setMachineID(machineID),
		s.config.System.SetBootID(bootID),
	)
}

// passingHostname is as long as the names that VMs get.
const passingHostname = "vers-00000000"

func newBootID() (string, error) {
	id, err := uuid.NewRandomFromReader(rand.Reader)
	return id.String(), err
}

// announce writes state and event.
func (s *Server) announce(st state) error {
	if err := os.MkdirAll(s.path(runDir), 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := replaceFile(s.path(stateFile), data, 0o600); err != nil {
		return err
	}
	data, err = json.Marshal(event{
		Version: 1, Generation: st.Generation, Reason: st.Identity.Reason, VMID: st.Identity.VMID,
		Hostname: st.Identity.Hostname, Time: st.Identity.Time,
	})
	if err != nil {
		return err
	}
	return replaceFile(s.path(eventFile), append(data, '\n'), 0o644)
}

func (s *Server) path(name string) string { return filepath.Join(s.config.Root, name) }

func (s *Server) setHostname(name string) error {
	if err := s.config.System.SetHostname(name); err != nil {
		return err
	}
	if err := os.MkdirAll(s.path("/etc"), 0o755); err != nil {
		return err
	}
	if err := rewriteFile(s.path("/etc/hostname"), []byte(name+"\n"), 0o644); err != nil {
		return err
	}
	old, err := os.ReadFile(s.path("/etc/hosts"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return rewriteFile(s.path("/etc/hosts"), []byte(renderHosts(string(old), name)), 0o644)
}

// renderHosts gives the guest's own name an address, in the place Debian uses for it.
func renderHosts(old, name string) string {
	var b strings.Builder
	local := false
	for line := range strings.Lines(old) {
		fields := strings.Fields(line)
		if len(fields) > 0 && fields[0] == "127.0.1.1" {
			continue
		}
		if len(fields) > 1 && fields[0] == "127.0.0.1" {
			local = true
		}
		b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	text := b.String()
	if !local {
		text = "127.0.0.1\tlocalhost\n" + text
	}
	return text + "127.0.1.1\t" + name + "\n"
}

func (s *Server) setMachineID(id string) error {
	if err := rewriteFile(s.path("/etc/machine-id"), []byte(id+"\n"), 0o444); err != nil {
		return err
	}
	dbus := s.path("/var/lib/dbus/machine-id")
	info, err := os.Lstat(dbus)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // no D-Bus
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return nil // a link to the file above
	}
	return rewriteFile(dbus, []byte(id+"\n"), 0o444)
}

func (s *Server) writeEnvironment(vars map[string]string) error {
	path := s.path(environmentFile)
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := renderEnvironment(string(old), vars)
	if text == string(old) {
		return nil
	}
	return replaceFile(path, []byte(text), mode)
}

// replaceFile writes a file at once or not at all. Where the file is a mount point and cannot be replaced, it is
// written in place. It does not wait for the disk: whoever snapshots the guest takes its memory too.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".vers-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // no longer there after the rename
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	err = os.Rename(tmp.Name(), path)
	if errors.Is(err, syscall.EBUSY) {
		return os.WriteFile(path, data, mode)
	}
	return err
}

// rewriteFile is replaceFile, but a short text of the same length takes the place of the old one: a new file costs the
// guest's file system much more.
func rewriteFile(path string, data []byte, mode fs.FileMode) error {
	if !fits(path, data, mode) {
		return replaceFile(path, data, mode)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, 0)
	return errors.Join(err, file.Close())
}

// fits reports whether data can be written over what a file holds. Within one page that happens at once.
func fits(path string, data []byte, mode fs.FileMode) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != mode || info.Size() != int64(len(data)) || len(data) > 4096 {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink == 1 && int(stat.Uid) == os.Geteuid() // else it is not only ours
}
