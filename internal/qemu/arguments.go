package qemu

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vers/internal/fault"
	"vers/internal/machine"
)

// devicesV1 is the name of the device list that this file builds. What is written under it is loaded under it: never
// change the devices, their order, addresses or properties; make a v2 beside it.
const devicesV1 = "v1"

// Names that QMP commands refer to.
const (
	diskDevice = "disk"
	ramObject  = "ram"
	consoleID  = "console"
)

// consoleBytes is how much of the serial console is kept. A ring buffer wants a power of two.
const consoleBytes = 64 << 10

// tbSizeMiB is the size of TCG's translation cache. Measured with the default image, QEMU 7.2, 512 MiB of guest RAM: boot
// to a mounted disk takes 4.9 s with 8 MiB, 3.5 s with 16, 3.1 s with 32, 3.0 s with 64. The cache is touched as it fills: an
// idle clone has 6 MiB of it whatever the size, a machine that booted and worked has all of it.
const tbSizeMiB = 32

// checkHardware refuses what the argument builder cannot express; each value becomes part of QEMU's arguments.
func checkHardware(h machine.Hardware, c Capabilities) error {
	switch {
	case h.Devices != devicesV1:
		return fault.Unavailablef("device list %q is not known here, only %q: use the versd that made it, or a newer one", h.Devices, devicesV1)
	case h.Accelerator != acceleratorTCG && h.Accelerator != acceleratorKVM:
		return fault.Invalidf("accelerator %q is not one of kvm, tcg", h.Accelerator)
	case !slices.Contains(c.MachineTypes, h.MachineType):
		return fault.Unavailablef("machine type %q is not offered by QEMU %s (%s): install a QEMU that has it", h.MachineType, c.Version, c.Path)
	case h.CPU == "" || strings.ContainsAny(h.CPU, " \n"):
		return fault.Invalidf("CPU model %q is not a name", h.CPU)
	case h.MemoryBytes < 1<<20 || h.MemoryBytes%(1<<20) != 0:
		return fault.Invalidf("guest RAM of %d bytes is not a positive number of MiB", h.MemoryBytes)
	case h.VCPUs < 1 || h.VCPUs > 255:
		return fault.Invalidf("%d vCPUs are not between 1 and 255", h.VCPUs)
	}
	return nil
}

// arguments gives QEMU's command line for spec. The working directory is spec.Dir.
func arguments(spec machine.Spec, c Capabilities) ([]string, error) {
	h := spec.Hardware
	if err := checkHardware(h, c); err != nil {
		return nil, err
	}
	a := []string{c.Path,
		"-name", "vers-" + escape(spec.ID),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// A guest that powers off, reboots or panics stays, stopped, so that its console can be read.
		"-action", "reboot=shutdown,shutdown=pause,panic=pause,watchdog=pause",
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d,server=on,wait=off", monitorFD),
		"-mon", "chardev=monitor,mode=control",
	}
	a = append(a, machineV1(h)...)
	ram, err := ramArguments(spec, c)
	if err != nil {
		return nil, err
	}
	a = append(a, ram...)
	disk, err := diskArguments(spec.Disk)
	if err != nil {
		return nil, err
	}
	a = append(a, disk...)
	a = append(a, devicesV1Arguments(len(spec.Disk) > 0)...)
	switch {
	case spec.MemoryFile != "":
		// The kernel is in the guest's memory already; giving it again would only cost time and host memory.
		a = append(a, "-incoming", "defer")
	case spec.Kernel != "":
		a = append(a, "-kernel", spec.Kernel, "-append", spec.Cmdline)
		if spec.Initrd != "" {
			a = append(a, "-initrd", spec.Initrd)
		}
	}
	return a, nil
}

// machineV1: board, CPU, accelerator.
func machineV1(h machine.Hardware) []string {
	accelerator := h.Accelerator
	if accelerator == acceleratorTCG {
		accelerator += ",tb-size=" + strconv.Itoa(tbSizeMiB)
	}
	return []string{
		// suppress-vmdesc, send-configuration: the device state then loads without a RAM section, in any QEMU version.
		"-machine", h.MachineType + ",sata=off,smbus=off,i8042=off,vmport=off,usb=off,hpet=off,smm=off,graphics=off," +
			"mem-merge=off,dump-guest-core=off,suppress-vmdesc=on,memory-backend=" + ramObject,
		"-global", "migration.send-configuration=off",
		"-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1", // no sleep states: nothing could wake it
		"-accel", accelerator,
		"-cpu", h.CPU,
		"-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", h.VCPUs, h.VCPUs),
		"-m", fmt.Sprintf("size=%dM", h.MemoryBytes>>20),
	}
}

func ramArguments(spec machine.Spec, c Capabilities) ([]string, error) {
	ram := map[string]any{"qom-type": "memory-backend-ram", "id": ramObject, "size": spec.Hardware.MemoryBytes, "merge": false, "dump": false}
	if spec.MemoryFile != "" {
		ram["qom-type"], ram["mem-path"], ram["share"] = "memory-backend-file", spec.MemoryFile, false
		if c.ReadOnlyMapping {
			ram["readonly"], ram["rom"] = true, "off"
		}
	}
	object, err := json.Marshal(ram)
	if err != nil {
		return nil, fmt.Errorf("describe guest RAM: %w", err)
	}
	return []string{"-object", string(object)}, nil
}

// devicesV1Arguments: everything on the bus. Each device has its own fixed slot; none brings a boot ROM. Modern virtio
// only, which saves the guest the legacy I/O ports. Without a disk there is a machine for the proof of the accelerator.
func devicesV1Arguments(disk bool) []string {
	var a []string
	if disk {
		a = append(a, "-device", "virtio-blk-pci,id="+diskDevice+",bus=pcie.0,addr=0x2,disable-legacy=on,drive="+nodeName(0, true)+",bootindex=1") // 0 is the kernel
	}
	for i, device := range []string{
		"mac=02:76:65:72:73:01,addr=0x3",
		"mac=02:76:65:72:73:02,addr=0x4,host_mtu=16384",
	} {
		a = append(a,
			"-netdev", fmt.Sprintf("dgram,id=net%d,local.type=unix,local.path=net%d.qemu,remote.type=unix,remote.path=net%d.host", i, i, i),
			"-device", fmt.Sprintf("virtio-net-pci,id=nic%d,netdev=net%d,bus=pcie.0,disable-legacy=on,romfile=,%s", i, i, device))
	}
	return append(a,
		"-object", "rng-builtin,id=entropy",
		"-device", "virtio-rng-pci,id=rng,rng=entropy,bus=pcie.0,addr=0x5,disable-legacy=on",
		"-chardev", fmt.Sprintf("ringbuf,id=%s,size=%d", consoleID, consoleBytes),
		"-serial", "chardev:"+consoleID,
	)
}

// blockNode describes one node of the block graph, for -blockdev and blockdev-add.
type blockNode map[string]any

// nodeName names the node of the layer with that index; the active one of a fresh process has a name of its own so
// that the device can refer to it.
func nodeName(index int, active bool) string {
	if active {
		return "active"
	}
	return "layer" + strconv.Itoa(index)
}

// diskArguments gives the chain of layers, bottom first. The backing of each is named here: what a header says about
// it is never followed.
func diskArguments(layers []machine.Layer) ([]string, error) {
	var a []string
	below := ""
	for i, layer := range layers {
		active := i == len(layers)-1
		name := nodeName(i, active)
		node, err := layerNode(layer, name, below, active)
		if err != nil {
			return nil, err
		}
		description, err := json.Marshal(node)
		if err != nil {
			return nil, fmt.Errorf("describe layer %s: %w", layer.Path, err)
		}
		a = append(a, "-blockdev", string(description))
		below = name
	}
	return a, nil
}

// layerNode describes one layer over the node below ("": none).
func layerNode(layer machine.Layer, name, below string, active bool) (blockNode, error) {
	node := blockNode{
		"driver": layer.Format, "node-name": name, "read-only": !active,
		// drop-cache=off: at the end of a load QEMU would throw the pages of every layer out of the page cache, which all
		// machines share, and wait for those that are not written yet.
		"file": blockNode{"driver": "file", "filename": layer.Path, "node-name": fileNode(name), "read-only": !active, "drop-cache": false},
	}
	if active {
		// Open for writing exactly as long as something writes: once the layer is frozen, QEMU may not do so any more,
		// and later captures look at it again.
		delete(node["file"].(blockNode), "read-only")
		node["file"].(blockNode)["auto-read-only"] = true
		// What the guest discards is given back, in its own layer only.
		node["discard"] = "unmap"
		node["file"].(blockNode)["discard"] = "unmap"
	}
	switch layer.Format {
	case "raw":
		if below != "" {
			return nil, fault.Invalidf("layer %s is raw and cannot stand on another one", layer.Path)
		}
	case "qcow2":
		if node["backing"] = nil; below != "" {
			node["backing"] = below
		}
	default:
		return nil, fault.Invalidf("layer %s has format %q, not raw or qcow2", layer.Path, layer.Format)
	}
	return node, nil
}

// escape doubles commas, as QEMU's option syntax wants.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
