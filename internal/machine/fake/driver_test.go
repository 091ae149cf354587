package fake

import (
	"testing"

	"vers/internal/machine"
	"vers/internal/machine/drivertest"
)

func TestConformance(t *testing.T) {
	d := New()
	drivertest.Run(t, drivertest.Harness{
		Driver:    d,
		DiskCount: func(_ *testing.T, layers []machine.Layer) uint32 { return d.DiskCount(layers) },
		Forget:    func(machine.Instance) {},
		Crash:     func(_ *testing.T, i machine.Instance) { i.(Instance).Crash() },
		LimitDir:  func(*testing.T, string) {},
		FillDir: func(_ *testing.T, dir string) func() {
			d.SetFull(dir, true)
			return func() { d.SetFull(dir, false) }
		},
		Alive: d.Alive,
	})
	if n := d.Running(); n != 0 {
		t.Errorf("%d machines are left", n)
	}
}
