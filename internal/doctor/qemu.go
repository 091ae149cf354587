package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"vers/internal/qemu"
)

const (
	installQEMU     = "apt-get install --no-install-recommends qemu-system-x86 qemu-utils"
	acceleratorName = "accelerator"
)

// qemuChecks asks QEMU itself what it can do; its version number alone proves nothing.
func qemuChecks(ctx context.Context, path string) []Check {
	can := Check{Name: "QEMU", Level: Required, Fix: installQEMU}
	sandbox := Check{Name: "QEMU sandbox", Level: Required, Fix: installQEMU}
	var prober qemu.Prober
	found, err := prober.Probe(ctx, path)
	if err != nil {
		can.Detail = err.Error()
		sandbox.Detail = "not known without a QEMU that answers"
		return []Check{can, sandbox, qemuImg(ctx)}
	}
	can.OK = true
	can.Detail = fmt.Sprintf("%s (%s): machine type %s, dgram networks, device state without RAM", found.Version, found.Path, found.MachineType)
	if !found.ReadOnlyMapping {
		can.Detail += "; opens memory files read-write (QEMU 8.2 and later need not)"
	}
	cmd := exec.CommandContext(ctx, found.Path, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", "-machine", "help")
	if out, err := cmd.CombinedOutput(); err != nil {
		sandbox.Detail = "this QEMU was built without seccomp, or the kernel lacks it: " + lastLine(out, err)
	} else {
		sandbox.OK, sandbox.Detail = true, "system calls of VMs are filtered (seccomp)"
	}
	return []Check{can, sandbox, qemuImg(ctx)}
}

func qemuImg(ctx context.Context) Check {
	c := Check{Name: "qemu-img", Level: Required, Fix: "apt-get install qemu-utils"}
	out, err := exec.CommandContext(ctx, "qemu-img", "--version").Output()
	if err != nil {
		c.Detail = "cannot be run, disk layers cannot be merged: " + lastLine(out, err)
		return c
	}
	first, _, _ := strings.Cut(string(out), "\n")
	c.OK, c.Detail = true, first
	return c
}

// kvm says what /dev/kvm looks like. Whether guests boot on it is another question, which internal/qemu answers.
func kvm() Check {
	c := Check{Name: "/dev/kvm", Level: Info}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
		c.OK, c.Detail = true, "can be opened"
	case os.IsNotExist(err):
		c.Detail = "is not there: VMs are emulated, ten times slower or more. Switch on virtualisation in the firmware, or nested virtualisation"
	case os.IsPermission(err):
		c.Level = Recommended
		c.Detail = "may not be opened by this user: VMs are emulated, ten times slower or more"
		c.Fix = "usermod --append --groups kvm " + currentUser()
	default:
		c.Detail = "cannot be opened: " + err.Error()
	}
	return c
}

func accelerator(proof string) Check {
	if proof == "" {
		return Check{Name: acceleratorName, Level: Info, Detail: "not proven yet: versd boots a small guest to find out when it starts"}
	}
	return Check{Name: acceleratorName, OK: true, Level: Info, Detail: proof}
}

func confinement(lost []string) Check {
	if len(lost) == 0 {
		return Check{Name: "confinement", OK: true, Level: Recommended, Detail: "every QEMU has as few rights as possible"}
	}
	return Check{Name: "confinement", Level: Recommended, Detail: "QEMU runs with more rights than it needs: " + strings.Join(lost, "; "), Fix: "run versd as root, on a host that allows namespaces"}
}

// lastLine is the end of what a failed program printed, or the error if it printed nothing.
func lastLine(out []byte, err error) string {
	text := strings.TrimSpace(string(out))
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	if text == "" {
		return err.Error()
	}
	return text
}
