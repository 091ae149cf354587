package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vers/internal/build/engine"
)

// runtimeMain stands between buildah and the OCI runtime: a container that is created gets what the run says, whatever
// the Dockerfile asked for (RUN --network=host, RUN --security=insecure), and then this process becomes the runtime.
func runtimeMain(args []string) int {
	s, err := readSurroundings()
	if err == nil {
		if bundle := bundleOf(args); bundle != "" {
			err = confineBundle(bundle, s)
		}
	}
	if err == nil {
		err = unix.Exec(s.Runtime, append([]string{s.Runtime}, args...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, "vers-builder: start a step:", err)
	return 125
}

func readSurroundings() (surroundings, error) {
	var s surroundings
	data, err := os.ReadFile(configPath)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// bundleOf is the folder of the container that a command line of the runtime creates; "" if it creates none.
func bundleOf(args []string) string {
	creates, bundle := false, ""
	for i, arg := range args {
		switch {
		case arg == "create" || arg == "run":
			creates = true
		case (arg == "--bundle" || arg == "-bundle" || arg == "-b") && i+1 < len(args):
			bundle = args[i+1]
		case strings.HasPrefix(arg, "--bundle="):
			bundle = strings.TrimPrefix(arg, "--bundle=")
		}
	}
	if creates && bundle == "" {
		bundle = "."
	}
	if !creates {
		return ""
	}
	return bundle
}

func confineBundle(bundle string, s surroundings) error {
	path := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	confine(&spec, s, false)
	if data, err = json.Marshal(&spec); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// confine puts a container into the run's network and control group, and behind the filter of system calls. A step that
// asked for no network has none.
func confine(spec *specs.Spec, s surroundings, privileged bool) {
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	namespaces := spec.Linux.Namespaces[:0]
	isolated := false
	for _, namespace := range spec.Linux.Namespaces {
		if namespace.Type == specs.NetworkNamespace {
			isolated = namespace.Path == ""
			continue
		}
		namespaces = append(namespaces, namespace)
	}
	network := specs.LinuxNamespace{Type: specs.NetworkNamespace}
	if s.Network != engine.NetworkNone && !isolated {
		network.Path = stepsNetwork
	}
	spec.Linux.Namespaces = append(namespaces, network)
	spec.Linux.CgroupsPath = filepath.Join(s.Group, fmt.Sprintf("step-%d", os.Getpid()))
	if !privileged {
		spec.Linux.Seccomp = seccompProfile(spec)
	}
}
