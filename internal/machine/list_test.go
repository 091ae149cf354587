package machine_test

import (
	"fmt"
	"testing"

	"vers/internal/machine/machinetest"
)

// VMs that were deleted do not slow the list down.
func BenchmarkList(b *testing.B) {
	r := machinetest.New(b, machinetest.Options{})
	for range 20 {
		r.Run(b)
	}
	list := func(name string) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if vms, err := r.Manager.List(b.Context(), r.Acme); err != nil || len(vms) != 20 {
					b.Fatalf("%d VMs, %v", len(vms), err)
				}
			}
		})
	}
	list("fresh")
	const dead = 200
	for range dead {
		must(b, r.Manager.Delete(b.Context(), r.Acme, r.Run(b).ID, false))
	}
	list(fmt.Sprintf("after %d deleted", dead))
}
