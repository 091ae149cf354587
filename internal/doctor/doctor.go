// Package doctor checks what vers needs of a host, by trying it where that is possible, and says in plain words what is
// missing, what that costs, and how to get it.
package doctor

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// Level says what a failed check means.
type Level string

// The levels.
const (
	Required    Level = "required"    // VMs cannot run without it
	Recommended Level = "recommended" // something is slower, weaker or missing without it
	Info        Level = "info"        // good to know; nothing to mend
)

// Check is the answer to one question.
type Check struct {
	Name   string
	OK     bool
	Level  Level
	Detail string // what was found, and what it costs if it is not OK
	Fix    string // command that mends it; "" if there is none
}

// Options says what is asked about.
type Options struct {
	DataDir     string   // need not exist yet
	QEMU        string   // name in PATH or path; "" is qemu-system-x86_64
	Accelerator string   // which one is used and the proof, from internal/qemu; "" if not known
	Unconfined  []string // what of QEMU's confinement this host does not allow, from internal/qemu; nil if not known
	Engine      string   // the container engine that builds images; "" if there is none
	EngineNotes []string // what it lacks on this host
	EngineErr   error    // why there is none; nil with an empty Engine: nobody asked
}

// Run makes all checks, in the order in which they are worth reading. They take about a second and leave nothing behind.
func Run(ctx context.Context, o Options) []Check {
	if o.QEMU == "" {
		o.QEMU = "qemu-system-x86_64"
	}
	var checks []Check
	checks = append(checks, system(), privileges())
	checks = append(checks, qemuChecks(ctx, o.QEMU)...)
	checks = append(checks, kvm(), accelerator(o.Accelerator))
	checks = append(checks, tools(o.DataDir)...)
	checks = append(checks, loopDevices(), diskSpace(o.DataDir), sharedBlocks(o.DataDir), freeMemory())
	checks = append(checks, namespaces(ctx))
	if o.Unconfined != nil {
		checks = append(checks, confinement(o.Unconfined))
	}
	checks = append(checks, guestMemory(ctx)...)
	if o.Engine != "" || o.EngineErr != nil {
		checks = append(checks, containerEngine(o))
	}
	return checks
}

// Healthy reports whether VMs can run: every required check is OK.
func Healthy(checks []Check) bool {
	for _, c := range checks {
		if !c.OK && c.Level == Required {
			return false
		}
	}
	return true
}

// Print writes one line for each check, with the remedy below those that failed, and a last line that sums up. Brief
// leaves out what is well, but the accelerator.
func Print(w io.Writer, checks []Check, brief bool) error {
	width := 0
	for _, c := range checks {
		width = max(width, len(c.Name))
	}
	var out strings.Builder
	required, recommended := 0, 0
	for _, c := range checks {
		mark := "ok"
		if !c.OK {
			switch c.Level {
			case Required:
				mark = "FAIL"
				required++
			case Recommended:
				mark = "warn"
				recommended++
			default:
				mark = "note"
			}
		}
		if brief && (c.OK || c.Level == Info) && c.Name != acceleratorName {
			continue
		}
		fmt.Fprintf(&out, "%-4s  %-*s  %s\n", mark, width, c.Name, c.Detail)
		if !c.OK && c.Fix != "" {
			fmt.Fprintf(&out, "%-4s  %-*s  mend: %s\n", "", width, "", c.Fix)
		}
	}
	switch {
	case required > 0:
		fmt.Fprintf(&out, "VMs cannot run here yet: %s missing (FAIL).\n", count(required, "required thing is", "required things are"))
	case recommended > 0:
		fmt.Fprintf(&out, "VMs can run here. %s (warn).\n", count(recommended, "thing could be better", "things could be better"))
	default:
		fmt.Fprintln(&out, "VMs can run here. Nothing is missing.")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// size writes a size as people read it.
func size(n uint64) string {
	if n >= 10<<30 {
		return fmt.Sprintf("%d GiB", n>>30)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
