package netstack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelHostAddress asks the kernel whether a packet to addr would stay on this host. That is the decision which the
// dialled socket meets as well, so it covers what a list of interface addresses misses: addresses that come and go,
// whole blocks routed to the host itself, and the broadcast addresses of its networks.
//
// What it cannot know is an address under which the host is reachable from outside only (port forwarding on a
// router); whoever relies on that writes a deny rule.
func kernelHostAddress(addr netip.Addr) (bool, error) {
	routes, err := netlink.RouteGet(net.IP(addr.AsSlice()))
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES),
		errors.Is(err, unix.EINVAL):
		// No route, or one of type unreachable, prohibit or blackhole: it does not lead to us, and dialling it
		// will fail by itself.
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look up the route to %s: %w", addr, err)
	}
	for _, route := range routes {
		switch route.Type {
		case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
			return true, nil
		}
	}
	return false, nil
}
