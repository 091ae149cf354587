package netstack

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The tests run in a network namespace of their own, so that nothing they do leaves the machine or depends on its
// addresses. In it the host has ownAddress and the block ownBlock, and a neighbour has peerAddress.
const (
	inNamespace = "VERS_NETSTACK_TEST_NAMESPACE"
	ownAddress  = "10.99.0.1"
	ownBlock    = "10.99.1.0/24"
	vethAddress = "10.98.0.1"
	peerAddress = "10.98.0.2"
)

func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) != "" {
		if err := prepareNamespace(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the network namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "these tests need a network namespace of their own (root, or user namespaces):", err)
		os.Exit(1)
	}
}

func prepareNamespace() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	own := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ownAddress), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrReplace(lo, own); err != nil {
		return err
	}
	_, block, err := net.ParseCIDR(ownBlock)
	if err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: block, Type: syscall.RTN_LOCAL, Table: syscall.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	})
}

// inPeer runs listen in the network namespace of a neighbour with peerAddress, reached over a veth pair. Sockets
// made there stay there.
func inPeer(t *testing.T, listen func()) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		// The thread is never unlocked, so it ends with the goroutine and takes the namespace along.
		runtime.LockOSThread()
		result <- func() error {
			home, err := netns.Get()
			if err != nil {
				return err
			}
			defer home.Close()
			peer, err := netns.New()
			if err != nil {
				return err
			}
			defer peer.Close()
			if err := linkUp(int(home), int(peer)); err != nil {
				return err
			}
			listen()
			return nil
		}()
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName("peer0"); err == nil {
			_ = netlink.LinkDel(link)
		}
	})
}

func linkUp(home, peer int) error {
	for _, end := range []struct {
		ns            int
		name, address string
	}{{home, "peer0", vethAddress}, {peer, "peer1", peerAddress}} {
		handle, err := netlink.NewHandleAt(netns.NsHandle(end.ns))
		if err != nil {
			return err
		}
		defer handle.Close()
		if end.name == "peer0" {
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "peer0"}, PeerName: "peer1", PeerNamespace: netlink.NsFd(peer)}
			if err := handle.LinkAdd(veth); err != nil {
				return fmt.Errorf("make a veth pair: %w", err)
			}
		}
		link, err := handle.LinkByName(end.name)
		if err != nil {
			return err
		}
		address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(end.address), Mask: net.CIDRMask(24, 32)}}
		if err := handle.AddrAdd(link, address); err != nil {
			return err
		}
		if err := handle.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nil
}
