package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded/wire"
)

// group is the control group of all steps of one run, in every hierarchy of version 1, or in version 2. The worker is not
// in it: what a step uses up must not end the engine.
type group struct {
	name   string // below the root of each hierarchy
	memory string // folder that has the memory controller; "" none
	pids   string
	v2     bool
	bytes  int64 // the limit
	// processes is the limit, failed the number of failures last seen, hit whether there was one.
	processes, failed int64
	hit               bool
}

// groupName is unique to the engine's folder, so that two servers of one host do not sweep each other's.
func groupName(dir, id string) string {
	sum := sha256.Sum256([]byte(dir))
	return "/vers-builder-" + hex.EncodeToString(sum[:6]) + "/" + id
}

// hierarchies are the mounted control group file systems: folder by controller, "" for version 2.
func hierarchies() map[string]string {
	found := map[string]string{}
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return found
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 || !strings.HasPrefix(fields[4], "/sys/fs/cgroup") {
			continue
		}
		switch tail[0] {
		case "cgroup2":
			found[""] = fields[4]
		case "cgroup":
			for _, controller := range strings.Split(tail[2], ",") {
				if controller != "rw" && controller != "ro" {
					found[controller] = fields[4]
				}
			}
		}
	}
	return found
}

// newGroup makes the group with its limits. A host without the controllers has none; Host.Limits says so.
func newGroup(dir, id string, limits engine.Limits) (_ *group, err error) {
	g := &group{name: groupName(dir, id)}
	roots := hierarchies()
	switch {
	case roots["memory"] != "" && roots["pids"] != "":
		g.memory, g.pids = roots["memory"]+g.name, roots["pids"]+g.name
	case roots[""] != "" && v2Controllers(roots[""]):
		g.v2, g.memory = true, roots[""]+g.name
		g.pids = g.memory
	default:
		return g, nil
	}
	defer func() {
		if err != nil {
			g.remove()
		}
	}()
	for _, folder := range slices.Compact([]string{g.memory, g.pids}) {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, fmt.Errorf("make a control group for the build: %w", err)
		}
	}
	if g.v2 {
		if err := g.delegate(roots[""]); err != nil {
			return nil, err
		}
	}
	return g, g.limit(limits)
}

func v2Controllers(root string) bool {
	data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	have := strings.Fields(string(data))
	return err == nil && slices.Contains(have, "memory") && slices.Contains(have, "pids")
}

// delegate passes the controllers down from the root to the group, whose children are the steps.
func (g *group) delegate(root string) error {
	for _, folder := range []string{root, filepath.Dir(g.memory), g.memory} {
		if err := os.WriteFile(filepath.Join(folder, "cgroup.subtree_control"), []byte("+memory +pids"), 0); err != nil {
			return fmt.Errorf("pass on the control group's controllers: %w", err)
		}
	}
	return nil
}

func (g *group) limit(limits engine.Limits) error {
	g.bytes = limits.MemoryMiB << 20
	bytes := strconv.FormatInt(g.bytes, 10)
	if limits.MemoryMiB > 0 && g.v2 {
		_ = os.WriteFile(filepath.Join(g.memory, "memory.swap.max"), []byte("0"), 0) // absent without swap accounting
		if err := os.WriteFile(filepath.Join(g.memory, "memory.max"), []byte(bytes), 0); err != nil {
			return fmt.Errorf("limit the memory of the build: %w", err)
		}
	} else if limits.MemoryMiB > 0 {
		if err := os.WriteFile(filepath.Join(g.memory, "memory.limit_in_bytes"), []byte(bytes), 0); err != nil {
			return fmt.Errorf("limit the memory of the build: %w", err)
		}
		_ = os.WriteFile(filepath.Join(g.memory, "memory.memsw.limit_in_bytes"), []byte(bytes), 0) // absent without swap accounting
	}
	g.processes = limits.Processes
	if limits.Processes > 0 {
		if err := os.WriteFile(filepath.Join(g.pids, "pids.max"), []byte(strconv.FormatInt(limits.Processes, 10)), 0); err != nil {
			return fmt.Errorf("limit the processes of the build: %w", err)
		}
	}
	return nil
}

// reached says which limit was: wire.LimitMemory, wire.LimitProcesses or "".
func (g *group) reached() string {
	if g.memory == "" {
		return ""
	}
	memory := counter(filepath.Join(g.memory, "memory.events"), "oom_kill") > 0
	if !g.v2 {
		// Version 1 counts kills in the step's own group, which is gone by now. Its count of failures stays 0 where
		// memory and swap have one limit.
		memory = g.bytes > 0 && counter(filepath.Join(g.memory, "memory.max_usage_in_bytes"), "") >= g.bytes
	}
	switch {
	case g.full() || g.hit || g.processes > 0 && counter(filepath.Join(g.pids, "pids.peak"), "") >= g.processes:
		return wire.LimitProcesses
	case memory:
		return wire.LimitMemory
	}
	return ""
}

// full reports whether there are as many processes as there may be, or a fork failed because of that a moment ago, as far
// as this can be seen: version 1 counts failures in the step's own group, which goes with the step.
func (g *group) full() bool {
	if g.pids == "" || g.processes <= 0 {
		return false
	}
	failed := counter(filepath.Join(g.pids, "pids.events"), "max")
	steps, _ := os.ReadDir(g.pids)
	for _, step := range steps {
		if step.IsDir() && !g.v2 {
			failed += counter(filepath.Join(g.pids, step.Name(), "pids.events"), "max")
		}
	}
	grew := failed > g.failed
	g.failed, g.hit = failed, g.hit || failed > 0
	return grew || counter(filepath.Join(g.pids, "pids.current"), "") >= g.processes
}

// counter reads the number behind key in a file of a control group, or the only number if key is "".
func counter(path, key string) int64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if key == "" && len(fields) == 1 || len(fields) == 2 && fields[0] == key {
			n, _ := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			return n
		}
	}
	return 0
}

// remove takes the group out of all hierarchies, with what the runtime made below it. Nothing runs in it any more.
func (g *group) remove() {
	if g.name == "" {
		return
	}
	for _, root := range hierarchies() {
		removeGroup(root + g.name)
		_ = os.Remove(filepath.Dir(root + g.name)) // fails while others are in it
	}
}

func removeGroup(folder string) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	for _, entry := range entries {
		if entry.IsDir() {
			removeGroup(filepath.Join(folder, entry.Name()))
		}
	}
	_ = os.Remove(folder)
}
