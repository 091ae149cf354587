package netstack

import (
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// peerNetwork holds the addresses under which a guest reaches other VMs of its organisation (peers.go).
const peerNetwork = "10.78.0.0/16"

// The networks are the same inside every VM, so that a clone needs no new address. They never meet: each VM has a
// stack of its own.
const (
	mainHost     = "10.77.0.1"
	mainGuest    = "10.77.0.2"
	mainHostMAC  = "02:76:65:72:73:fe"
	mainGuestMAC = "02:76:65:72:73:01"
	mainMTU      = 1500
	mainHostname = "gateway.vers.internal."
	internalZone = "internal."

	controlHost     = "169.254.77.1"
	controlGuest    = "169.254.77.2"
	controlHostMAC  = "02:76:65:72:73:fd"
	controlGuestMAC = "02:76:65:72:73:02"
	controlMTU      = 16384

	// agentPort is where the agent listens, on the control network only.
	agentPort = 7077
)

const (
	mainNIC    tcpip.NICID = 1
	controlNIC tcpip.NICID = 2
)

// side holds the addresses of one of the two networks.
type side struct {
	name              string // for messages
	hostSock, vmSock  string // names of the sockets in Config.Dir
	nic               tcpip.NICID
	host, guest       netip.Addr
	hostMAC, guestMAC [6]byte
	mtu               uint32
}

func (s *side) prefixLen() int {
	if s.nic == controlNIC {
		return 30
	}
	return 24
}

func mainSide() side {
	return side{
		name: "main network", hostSock: "net0.host", vmSock: "net0.qemu", nic: mainNIC,
		host: netip.MustParseAddr(mainHost), guest: netip.MustParseAddr(mainGuest),
		hostMAC: mustMAC(mainHostMAC), guestMAC: mustMAC(mainGuestMAC), mtu: mainMTU,
	}
}

func controlSide() side {
	return side{
		name: "control network", hostSock: "net1.host", vmSock: "net1.qemu", nic: controlNIC,
		host: netip.MustParseAddr(controlHost), guest: netip.MustParseAddr(controlGuest),
		hostMAC: mustMAC(controlHostMAC), guestMAC: mustMAC(controlGuestMAC), mtu: controlMTU,
	}
}

// mustMAC parses one of the constants above.
func mustMAC(text string) [6]byte {
	mac, err := net.ParseMAC(text)
	if err != nil {
		panic(err)
	}
	return [6]byte(mac)
}

func tcpipAddress(addr netip.Addr) tcpip.Address { return tcpip.AddrFrom4(addr.As4()) }

func addrPort(addr tcpip.Address, port uint16) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(addr.AsSlice())
	return netip.AddrPortFrom(ip.Unmap(), port)
}
