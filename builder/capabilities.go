package main

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// usual are the capabilities of containers in Docker and Podman, but CAP_MKNOD and CAP_NET_RAW, which builds rarely need.
var usual = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP",
	"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// all are the capabilities that this process has itself: none can give more.
func all() []string {
	own, err := capability.NewPid2(0)
	if err != nil || own.Load() != nil {
		return usual
	}
	var names []string
	for _, c := range capability.ListKnown() {
		if own.Get(capability.BOUNDING, c) {
			names = append(names, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return names
}

// capabilities are what the container's processes may have.
func (s *session) capabilities() ([]string, error) {
	names := slices.Clone(usual)
	if s.open.Privileged {
		names = all()
	}
	for _, name := range s.open.CapAdd {
		if strings.EqualFold(name, "ALL") {
			names = all()
			continue
		}
		full, err := capabilityName(name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(names, full) {
			names = append(names, full)
		}
	}
	for _, name := range s.open.CapDrop {
		if strings.EqualFold(name, "ALL") {
			names = nil
			continue
		}
		full, err := capabilityName(name)
		if err != nil {
			return nil, err
		}
		names = slices.DeleteFunc(names, func(other string) bool { return other == full })
	}
	return names, nil
}

// capabilityName accepts both ways of writing: NET_ADMIN and CAP_NET_ADMIN.
func capabilityName(name string) (string, error) {
	full := "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	for _, c := range capability.ListKnown() {
		if full == "CAP_"+strings.ToUpper(c.String()) {
			return full, nil
		}
	}
	return "", fault.Invalidf("there is no capability %q", name)
}

func sets(names []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
}

// ownLimits are the process's own: without CAP_SYS_RESOURCE nobody can raise them.
func ownLimits() []specs.POSIXRlimit {
	var limits []specs.POSIXRlimit
	for name, resource := range map[string]int{"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC} {
		var limit unix.Rlimit
		if unix.Getrlimit(resource, &limit) == nil {
			limits = append(limits, specs.POSIXRlimit{Type: name, Hard: limit.Max, Soft: limit.Cur})
		}
	}
	return limits
}

// deviceRules allow the few devices that the runtime puts into every container; the privileged may use all.
func deviceRules(privileged bool) []specs.LinuxDeviceCgroup {
	return []specs.LinuxDeviceCgroup{{Allow: privileged, Access: "rwm"}}
}
