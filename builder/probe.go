package main

import (
	"os"
	"os/exec"
	"strings"

	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
)

// probe says what this host can do for builds, without building anything.
func probe(start wire.Start) *wire.Host {
	host := &wire.Host{}
	if os.Geteuid() != 0 {
		host.Err = wire.Pack(fault.Unavailablef("the embedded container engine needs root; as another user, use Docker or Podman"))
		return host
	}
	path, err := findRuntime(start.Runtime)
	if err != nil {
		host.Err = wire.Pack(err)
		return host
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		host.Err = wire.Pack(fault.Unavailablef("the OCI runtime %s does not run: %w", path, err))
		return host
	}
	host.EngineVersion = "buildah " + buildahVersion()
	host.Runtime = path
	host.RuntimeVersion, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	roots := hierarchies()
	host.Limits = roots["memory"] != "" && roots["pids"] != "" || roots[""] != "" && v2Controllers(roots[""])
	if !host.Limits {
		host.Notes = append(host.Notes, "This host has no control groups for memory and processes: steps of builds are not limited in them.")
	}
	host.Network = canTap()
	if !host.Network {
		host.Notes = append(host.Notes, "There is no /dev/net/tun: steps of builds cannot have a network (modprobe tun).")
	}
	return host
}

func canTap() bool {
	file, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = file.Close()
	return true
}
