package main

import (
	"runtime"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"go.podman.io/common/pkg/seccomp"
	"golang.org/x/sys/unix"
)

// seccompProfile is the profile that container engines use by default, for the capabilities that the container has.
// buildah applies it only in builds with cgo.
func seccompProfile(spec *specs.Spec) *specs.LinuxSeccomp {
	profile := seccomp.DefaultProfile()
	denied := uint(unix.ENOSYS)
	filter := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(profile.DefaultAction), DefaultErrnoRet: &denied,
		Architectures: nativeArchitectures(),
	}
	var capabilities []string
	if spec.Process != nil && spec.Process.Capabilities != nil {
		capabilities = spec.Process.Capabilities.Bounding
	}
	for _, call := range profile.Syscalls {
		if !applies(call, capabilities) {
			continue
		}
		names := call.Names
		if call.Name != "" {
			names = []string{call.Name}
		}
		rule := specs.LinuxSyscall{Names: names, Action: specs.LinuxSeccompAction(call.Action), ErrnoRet: errno(call)}
		for _, arg := range call.Args {
			rule.Args = append(rule.Args, specs.LinuxSeccompArg{
				Index: arg.Index, Value: arg.Value, ValueTwo: arg.ValueTwo, Op: specs.LinuxSeccompOperator(arg.Op),
			})
		}
		filter.Syscalls = append(filter.Syscalls, rule)
	}
	return filter
}

// applies evaluates the conditions of a rule: architectures and capabilities.
func applies(call *seccomp.Syscall, capabilities []string) bool {
	has := func(name string) bool { return slices.Contains(capabilities, name) }
	lacks := func(name string) bool { return !has(name) }
	switch {
	case slices.Contains(call.Excludes.Arches, nativeArch()):
		return false
	case slices.ContainsFunc(call.Excludes.Caps, has):
		return false
	case len(call.Includes.Arches) > 0 && !slices.Contains(call.Includes.Arches, nativeArch()):
		return false
	}
	return !slices.ContainsFunc(call.Includes.Caps, lacks)
}

func errno(call *seccomp.Syscall) *uint {
	if call.Action != seccomp.ActErrno {
		return nil
	}
	value := uint(unix.EPERM)
	switch {
	case call.ErrnoRet != nil:
		value = *call.ErrnoRet
	case call.Errno == "ENOSYS":
		value = uint(unix.ENOSYS)
	case call.Errno == "EINVAL":
		value = uint(unix.EINVAL)
	}
	return &value
}

// nativeArch is this machine in the words of the profile's conditions.
func nativeArch() string { return runtime.GOARCH }

// nativeArchitectures are those whose system calls this machine's kernel takes.
func nativeArchitectures() []specs.Arch {
	switch runtime.GOARCH {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	return nil
}
