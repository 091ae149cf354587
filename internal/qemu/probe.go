package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"vers/internal/fault"
)

// preferredMachine is offered by QEMU 7.2 and all later ones, so commits made with it cross versions (design 2.1).
const preferredMachine = "pc-q35-7.2"

// probeLimit bounds asking a QEMU what it can do; it takes about 60 ms.
const probeLimit = 20 * time.Second

// Capabilities is what one QEMU binary can do, as it says itself.
type Capabilities struct {
	Path            string
	Version         string
	MachineTypes    []string // all it offers
	MachineType     string   // the one for new machines
	TCG, KVM        bool     // accelerators built in
	ReadOnlyMapping bool     // memory-backend-file takes readonly=on,rom=off: the memory file is opened read-only
	FileTransport   bool     // migrate-incoming takes file:; where it exists, fd: of a file is deprecated
}

// Prober asks QEMU binaries what they can do, once for each file.
type Prober struct {
	mu    sync.Mutex
	known map[binaryKey]Capabilities
}

type binaryKey struct {
	path     string
	size     int64
	modified time.Time
}

// Probe gives what the binary at path can do; path is looked up in PATH if it has no slash.
func (p *Prober) Probe(ctx context.Context, path string) (Capabilities, error) {
	found, err := exec.LookPath(path)
	if err != nil {
		return Capabilities{}, fault.Unavailablef("QEMU %q is not on this host: install the Debian package qemu-system-x86 (%w)", path, err)
	}
	if found, err = filepath.Abs(found); err != nil {
		return Capabilities{}, fmt.Errorf("find QEMU: %w", err)
	}
	info, err := os.Stat(found)
	if err != nil {
		return Capabilities{}, fmt.Errorf("find QEMU: %w", err)
	}
	key := binaryKey{found, info.Size(), info.ModTime()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.known[key]; ok {
		return c, nil
	}
	c, err := probe(ctx, found)
	if err != nil {
		return Capabilities{}, err
	}
	if p.known == nil {
		p.known = map[binaryKey]Capabilities{}
	}
	p.known[key] = c
	return c, nil
}

// pipes is the two ends of a child's stdin and stdout.
type pipes struct {
	io.ReadCloser
	io.WriteCloser
}

func (p pipes) Close() error { return errors.Join(p.WriteCloser.Close(), p.ReadCloser.Close()) }

func probe(ctx context.Context, path string) (c Capabilities, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-machine", "none", "-S", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return c, fmt.Errorf("probe QEMU: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return c, fmt.Errorf("probe QEMU: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return c, fault.Unavailablef("start QEMU %s: %w", path, err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // killed by cancel: its exit says nothing
		if err != nil && said.Len() > 0 {
			err = fmt.Errorf("%w; QEMU said: %s", err, strings.TrimSpace(said.String()))
		}
	}()
	q, err := NewQMP(ctx, pipes{out, in}, nil)
	if err != nil {
		return c, fmt.Errorf("probe QEMU %s: %w", path, err)
	}
	defer q.Close()
	c.Path = path
	return c, c.ask(ctx, q)
}

// ask fills c, and fails if QEMU lacks something that there is no way around.
func (c *Capabilities) ask(ctx context.Context, q *QMP) error {
	var version struct {
		QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
	}
	var machines, commands, properties []struct{ Name string }
	var kvm struct{ Present bool }
	var schema qmpSchema
	for _, query := range []struct {
		command   string
		arguments any
		result    any
	}{
		{"query-version", nil, &version},
		{"query-machines", nil, &machines},
		{"query-commands", nil, &commands},
		{"qom-list-properties", map[string]string{"typename": "memory-backend-file"}, &properties},
		{"query-kvm", nil, &kvm},
		{"query-qmp-schema", nil, &schema.entities},
	} {
		if err := q.Execute(ctx, query.command, query.arguments, query.result); err != nil {
			return fmt.Errorf("probe QEMU %s: %w", c.Path, err)
		}
	}
	c.Version = fmt.Sprintf("%d.%d.%d", version.QEMU.Major, version.QEMU.Minor, version.QEMU.Micro)
	has := func(list []struct{ Name string }, name string) bool {
		return slices.ContainsFunc(list, func(e struct{ Name string }) bool { return e.Name == name })
	}
	for _, m := range machines {
		c.MachineTypes = append(c.MachineTypes, m.Name)
	}
	slices.Sort(c.MachineTypes)
	c.MachineType = chooseMachine(c.MachineTypes)
	// Not qom-list-types: it loads every module there is, which takes 60 ms.
	c.TCG = q.Execute(ctx, "qom-list-properties", map[string]string{"typename": "tcg-accel"}, nil) == nil
	c.KVM = kvm.Present
	c.ReadOnlyMapping = has(properties, "rom") && has(properties, "readonly")
	c.FileTransport = schema.offers("migrate-incoming", "channels", "addr", "transport", "file")

	missing := []string{}
	for _, name := range []string{"xen-save-devices-state", "blockdev-snapshot", "migrate-incoming", "ringbuf-read"} {
		if !has(commands, name) {
			missing = append(missing, "the QMP command "+name)
		}
	}
	if c.MachineType == "" {
		missing = append(missing, "a versioned q35 machine type")
	}
	if !schema.offers("netdev_add", "type", "dgram") {
		missing = append(missing, "-netdev dgram (QEMU 7.2 and later)")
	}
	if len(missing) > 0 {
		return fault.Unavailablef("QEMU %s (%s) cannot be used, it lacks %s: install QEMU 7.2 or later", c.Path, c.Version, strings.Join(missing, ", "))
	}
	return nil
}

var versionedMachine = regexp.MustCompile(`^pc-q35-(\d+)\.(\d+)(?:\.(\d+))?$`)

// chooseMachine gives the preferred machine type, else the newest versioned q35, else "".
func chooseMachine(offered []string) string {
	if slices.Contains(offered, preferredMachine) {
		return preferredMachine
	}
	best, bestVersion := "", []int{}
	for _, name := range offered {
		parts := versionedMachine.FindStringSubmatch(name)
		if parts == nil {
			continue
		}
		version := make([]int, 3)
		for i, p := range parts[1:] {
			version[i], _ = strconv.Atoi(p) // "" is 0
		}
		if best == "" || slices.Compare(version, bestVersion) > 0 {
			best, bestVersion = name, version
		}
	}
	return best
}

// qmpSchema answers what a command takes, from query-qmp-schema.
type qmpSchema struct{ entities []schemaEntity }

type schemaEntity struct {
	Name        string          `json:"name"`
	Meta        string          `json:"meta-type"`
	ArgType     string          `json:"arg-type"`
	ElementType string          `json:"element-type"`
	Values      []string        `json:"values"`
	Members     json.RawMessage `json:"members"` // objects with name and type; of an alternate, with type only
}

// offers follows path, member names ending in an enum value, from the arguments of command.
func (s qmpSchema) offers(command string, path ...string) bool {
	entity := func(name string) (schemaEntity, bool) {
		i := slices.IndexFunc(s.entities, func(e schemaEntity) bool { return e.Name == name })
		if i < 0 {
			return schemaEntity{}, false
		}
		return s.entities[i], true
	}
	at, ok := entity(command)
	if !ok {
		return false
	}
	if at, ok = entity(at.ArgType); !ok {
		return false
	}
	for i, name := range path {
		for at.Meta == "array" {
			if at, ok = entity(at.ElementType); !ok {
				return false
			}
		}
		if at.Meta == "enum" {
			return i == len(path)-1 && slices.Contains(at.Values, name)
		}
		var members []struct{ Name, Type string }
		if at.Members == nil || json.Unmarshal(at.Members, &members) != nil {
			return false
		}
		j := slices.IndexFunc(members, func(m struct{ Name, Type string }) bool { return m.Name == name })
		if j < 0 {
			return false
		}
		if at, ok = entity(members[j].Type); !ok {
			return false
		}
	}
	return true
}
