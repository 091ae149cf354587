package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vers/internal/build/engine/choice"
	"vers/internal/config"
	"vers/internal/doctor"
	"vers/internal/image"
)

// Doctor checks the host and prints what it found; with brief only what is missing, and the accelerator. The error says
// that VMs cannot run here.
func Doctor(ctx context.Context, c config.Server, brief bool, out io.Writer) error {
	o := doctor.Options{DataDir: c.DataDir, QEMU: c.QEMU}
	o.Accelerator, o.Unconfined = proveAccelerator(ctx, c)
	o.Engine, o.EngineNotes, o.EngineErr = proveEngine(ctx, c)
	checks := doctor.Run(ctx, o)
	healthy := doctor.Healthy(checks)
	if err := doctor.Print(out, checks, brief); err != nil {
		return err
	}
	if !healthy {
		return errors.New("VMs cannot run on this host yet: see above")
	}
	return nil
}

// proveAccelerator says which accelerator is used and why, and what of QEMU's confinement is lost. Empty where that needs
// a kernel that is not prepared yet.
func proveAccelerator(ctx context.Context, c config.Server) (accelerator string, unconfined []string) {
	kernel, err := image.OpenKernel(c.DataDir, image.DefaultKernel)
	if err != nil {
		return "", nil
	}
	agent, err := agentPath()
	if err != nil {
		return "", nil
	}
	a := assets{kernel: kernel}
	if a.initrd.Name, a.initrd.BLAKE3, err = image.Initrd(ctx, c.DataDir, kernel, agent); err != nil {
		return "", nil
	}
	driver, err := openDriver(ctx, c, a, discardLogger())
	if err != nil {
		return fmt.Sprintf("none: %v", err), nil
	}
	host := driver.Host()
	return host.Accelerator + ": " + host.AcceleratorBy, host.Unconfined
}

// proveEngine says which container engine builds images, what it lacks, and why there is none.
func proveEngine(ctx context.Context, c config.Server) (name string, notes []string, err error) {
	eng, err := choice.Open(ctx, engineOptions(c, ""))
	if err != nil {
		return "", nil, err
	}
	defer eng.Close()
	has, err := eng.Capabilities(ctx)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("%s (%s, %s)", has.Engine, has.Version, has.Isolation), has.Notes, nil
}
