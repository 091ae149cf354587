package netstack

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Resolver is the address of the name server that a guest has.
const Resolver = mainHost

// Tap is a guest's place in a network for processes of this host instead of a VM: a network card eth0 in a network
// namespace, with the guest's addresses, whose frames go through the same sockets as QEMU's.
type Tap struct {
	device *os.File
	dir    *directory
	socket *net.UnixConn
	pumps  sync.WaitGroup
}

// NewTap makes the card in the network namespace of the calling thread, which must be one without other cards, and
// joins it to the network that New made in dir. Needs root and /dev/net/tun.
func NewTap(dir string) (_ *Tap, err error) {
	t := &Tap{}
	defer func() {
		if err != nil {
			_ = t.Close()
		}
	}()
	side := mainSide()
	if t.device, err = openTap(side); err != nil {
		return nil, fmt.Errorf("make a tap device: %w", err)
	}
	if t.dir, err = openDirectory(dir); err != nil {
		return nil, err
	}
	local := &net.UnixAddr{Name: procPath(t.dir.fd(), side.vmSock), Net: "unixgram"}
	if t.socket, err = net.ListenUnixgram("unixgram", local); err != nil {
		return nil, fmt.Errorf("socket %s: %w", filepath.Join(dir, side.vmSock), err)
	}
	remote := &net.UnixAddr{Name: procPath(t.dir.fd(), side.hostSock), Net: "unixgram"}
	t.pumps.Go(func() { t.send(remote) })
	t.pumps.Go(t.receive)
	return t, nil
}

// tapFrame is more than the longest frame of the card.
const tapFrame = mainMTU + 64

// send names the other end with every frame, as QEMU does: it may be taken over.
func (t *Tap) send(remote *net.UnixAddr) {
	frame := make([]byte, tapFrame)
	for {
		n, err := t.device.Read(frame)
		if err != nil {
			return
		}
		_, _ = t.socket.WriteToUnix(frame[:n], remote) // what nobody takes is lost, as on a cable
	}
}

func (t *Tap) receive() {
	frame := make([]byte, tapFrame)
	for {
		n, _, err := t.socket.ReadFromUnix(frame)
		if err != nil {
			return
		}
		_, _ = t.device.Write(frame[:n])
	}
}

// Close removes the card. Close the Network first: it resets the connections over it.
func (t *Tap) Close() error {
	var errs []error
	if t.device != nil {
		errs = append(errs, t.device.Close())
	}
	if t.socket != nil {
		errs = append(errs, t.socket.Close())
	}
	t.pumps.Wait()
	if t.dir != nil {
		errs = append(errs, t.dir.file.Close())
	}
	return errors.Join(errs...)
}

// openTap makes eth0, and sets lo up, in the network namespace of the calling thread.
func openTap(s side) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	if err := configureTap(fd, s); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	// Only now: Go's poller hears nothing of a device that it took before it had its name.
	return os.NewFile(uintptr(fd), "tap"), nil
}

func configureTap(fd int, s side) error {
	request, err := unix.NewIfreq("eth0")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return err
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: s.guest.AsSlice(), Mask: net.CIDRMask(s.prefixLen(), 32)}}
	return errors.Join(
		netlink.LinkSetUp(loopback),
		netlink.LinkSetHardwareAddr(link, s.guestMAC[:]),
		netlink.AddrAdd(link, address),
		netlink.LinkSetUp(link),
		netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: s.host.AsSlice()}),
	)
}
