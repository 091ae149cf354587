// Package qemu runs machines in QEMU processes. It implements machine.Driver.
//
// One process per machine, started confined by a launcher (this executable re-executed, see LauncherMain) and detached,
// so that it outlives versd. It is steered over QMP on a UNIX socket in the machine's directory:
//
//	<dir>/qmp.sock       QMP, listened on by QEMU; one client at a time
//	<dir>/qemu.out       FIFO that takes QEMU's stdout and stderr: bounded by the kernel, read by whoever steers it
//	<dir>/qemu.log       what was read from it, at most logLimit bytes
//	<dir>/console.log    the newest 64 KiB of the serial console, as far as somebody asked for it
//	<dir>/net?.qemu      datagram sockets bound by QEMU, one Ethernet frame per datagram; it sends to net?.host
//
// What a state depends on is built from machine.Hardware alone, never from today's defaults. The name of its device
// list, "v1", stands for the order, addresses and properties in arguments.go: they must never change under that name.
//
// Guest memory is one memory backend. Nothing here may discard guest RAM (no balloon, no free-page reporting, no
// virtio-mem, no postcopy): on a private file mapping QEMU would punch the hole into the file that all clones share.
package qemu
