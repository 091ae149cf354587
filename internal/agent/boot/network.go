package boot

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"vers/internal/guest"
)

// The networks are the same inside every VM (docs/guest-protocol.md).
const (
	mainMAC        = "02:76:65:72:73:01"
	mainName       = "eth0"
	mainAddress    = "10.77.0.2/24"
	gatewayMAC     = "02:76:65:72:73:fe"
	controlMAC     = "02:76:65:72:73:02"
	controlAddress = "169.254.77.2/30"
	controlHost    = "169.254.77.1"
	controlHostMAC = "02:76:65:72:73:fd"
)

// setUpNetwork configures both network cards. The control card goes into a namespace of its own, which lives as long as
// the socket that is returned, the agent's listener; nothing that the image does to its network reaches it there.
func setUpNetwork() (*os.File, error) {
	control, err := waitForCard(controlMAC)
	if err != nil {
		return nil, err
	}
	listener, err := listenApart(control)
	if err != nil {
		return nil, fmt.Errorf("set up the control network: %w", err)
	}
	if err := setUpMain(); err != nil {
		return nil, fmt.Errorf("set up the main network: %w", err)
	}
	return listener, nil
}

func waitForCard(mac string) (netlink.Link, error) {
	want, err := net.ParseMAC(mac)
	if err != nil {
		return nil, err
	}
	var found netlink.Link
	err = waitFor("the network card "+mac, func() (bool, error) {
		links, err := netlink.LinkList()
		if err != nil {
			return false, err
		}
		for _, link := range links {
			if bytes.Equal(link.Attrs().HardwareAddr, want) {
				found = link
				return true, nil
			}
		}
		return false, nil
	})
	return found, err
}

// listenApart moves a card into a new network namespace and listens there.
func listenApart(card netlink.Link) (*os.File, error) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		return nil, err
	}
	defer func() { _ = home.Close() }()
	apart, err := netns.New() // this thread is in it now
	if err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	defer func() { _ = apart.Close() }()
	file, err := func() (*os.File, error) {
		if err := netns.Set(home); err != nil {
			return nil, err
		}
		if err := netlink.LinkSetNsFd(card, int(apart)); err != nil {
			return nil, fmt.Errorf("move the card into its namespace: %w", err)
		}
		if err := netns.Set(apart); err != nil {
			return nil, err
		}
		return listen(card.Attrs().HardwareAddr)
	}()
	if herr := netns.Set(home); herr != nil {
		// The thread stays locked, and so cannot come to run anything else.
		return nil, fmt.Errorf("return to the main network namespace: %w", herr)
	}
	runtime.UnlockOSThread()
	return file, err
}

// listen configures the control card of the current namespace.
func listen(mac net.HardwareAddr) (*os.File, error) {
	// One peer with a fixed address: no router or neighbour is to be searched for, above all not by idle clones.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0) // a kernel may lack IPv6
	card, err := waitForCard(mac.String())
	if err != nil {
		return nil, err
	}
	if err := bringUp(card, controlAddress); err != nil {
		return nil, err
	}
	if err := knowNeighbour(card, controlHost, controlHostMAC); err != nil {
		return nil, err
	}
	address, _, err := net.ParseCIDR(controlAddress)
	if err != nil {
		return nil, err
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: address, Port: guest.Port})
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	return l.File()
}

func setUpMain() error {
	if lo, err := netlink.LinkByName("lo"); err != nil {
		return err
	} else if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	card, err := waitForCard(mainMAC)
	if err != nil {
		return err
	}
	if card.Attrs().Name != mainName {
		if err := netlink.LinkSetName(card, mainName); err != nil {
			return fmt.Errorf("name the card %s: %w", mainName, err)
		}
	}
	if err := bringUp(card, mainAddress); err != nil {
		return err
	}
	if err := knowNeighbour(card, gateway, gatewayMAC); err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: card.Attrs().Index, Gw: net.ParseIP(gateway)})
}

func bringUp(card netlink.Link, address string) error {
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(card, addr); err != nil {
		return fmt.Errorf("give the card the address %s: %w", address, err)
	}
	return netlink.LinkSetUp(card)
}

// knowNeighbour spares the exchange that finds a neighbour's hardware address, at boot and after each restore.
func knowNeighbour(card netlink.Link, address, mac string) error {
	hardware, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	return netlink.NeighSet(&netlink.Neigh{
		LinkIndex: card.Attrs().Index, IP: net.ParseIP(address), HardwareAddr: hardware, State: netlink.NUD_PERMANENT,
	})
}
