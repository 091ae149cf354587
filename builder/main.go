// Program vers-builder is the embedded container engine: buildah in a process of its own, so that versd and vers stay
// small, and so that ending a build is ending a process. The protocol is in vers/internal/build/engine/embedded/wire.
//
// One program, several processes:
//
//	supervisor   started by vers or versd. Root on the host. Makes the namespaces, networks and the control group, enforces
//	             limits, kills what must end, cleans up. Touches nothing that a tenant wrote.
//	init         first process of the PID namespace, in a root file system that holds only what builds need.
//	worker       its child: buildah, the store, the protocol.
//	runtime      what buildah calls as its OCI runtime: adds what every step gets (network, control group, system call
//	             filter) and becomes the real one.
//	pause        first process of a session's container.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containers/buildah"
)

var version, commit = "unknown", "unknown" // set by the linker

func main() {
	if buildah.InitReexec() {
		return
	}
	if filepath.Base(os.Args[0]) == filepath.Base(runtimePath) {
		os.Exit(runtimeMain(os.Args[1:]))
	}
	role := ""
	if len(os.Args) == 2 {
		role = os.Args[1]
	}
	switch role {
	case "supervisor":
		os.Exit(supervisorMain())
	case "init":
		os.Exit(initMain())
	case "worker":
		os.Exit(workerMain())
	case "pause":
		pauseMain()
	case "version", "--version":
		fmt.Println("vers-builder", version, commit, "buildah", buildahVersion())
	default:
		fmt.Fprintln(os.Stderr, "vers-builder is the container engine of vers and versd, and is started by them. vers-builder version tells which one it is.")
		os.Exit(2)
	}
}
