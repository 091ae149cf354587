package netstack

import (
	"bytes"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vers/internal/fault"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68

	// dhcpLease is "for ever" (RFC 2131, 3.3): there is nobody else to give the address to, and a guest that was
	// restored after a month should not find its address expired.
	dhcpLease = (1<<32 - 1) * time.Second
)

// startDHCP serves images that configure their network themselves. The agent needs no DHCP.
func (n *Network) startDHCP() error {
	queue := new(waiter.Queue)
	ep, err := n.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, queue)
	if err != nil {
		return fault.New(fault.Internal, "start DHCP: %s", err)
	}
	ep.SocketOptions().SetBroadcast(true)
	if err := ep.Bind(tcpip.FullAddress{NIC: mainNIC, Port: dhcpServerPort}); err != nil {
		ep.Close()
		return fault.New(fault.Internal, "start DHCP: %s", err)
	}
	conn := gonet.NewUDPConn(queue, ep)
	n.workers.Go(func() { n.serveDHCP(conn) })
	return nil
}

func (n *Network) serveDHCP(conn *gonet.UDPConn) {
	defer conn.Close()
	request := make([]byte, mainMTU)
	for {
		size, _, err := conn.ReadFrom(request)
		if n.ctx.Err() != nil {
			return
		}
		if err != nil {
			continue
		}
		func() {
			defer n.guard("dhcp")
			if reply, to := n.main.answerDHCP(request[:size]); reply != nil {
				_, _ = conn.WriteTo(reply, to)
			}
		}()
	}
}

// answerDHCP returns the reply to a request and where it goes, nil if there is none.
func (s *side) answerDHCP(packet []byte) ([]byte, net.Addr) {
	request, err := dhcpv4.FromBytes(packet)
	if err != nil || request.OpCode != dhcpv4.OpcodeBootRequest || !bytes.Equal(request.ClientHWAddr, s.guestMAC[:]) {
		return nil, nil
	}
	host, guest := net.IP(s.host.AsSlice()), net.IP(s.guest.AsSlice())
	if server := request.ServerIdentifier(); server != nil && !server.Equal(host) {
		return nil, nil // the client chose another server
	}
	to := &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpClientPort}
	// A client that has its address listens on that only.
	if request.ClientIPAddr.Equal(guest) {
		to.IP = guest
	}
	reply, err := dhcpv4.NewReplyFromRequest(request,
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(host)))
	if err != nil {
		return nil, nil
	}
	switch request.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		reply.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeOffer))
	case dhcpv4.MessageTypeRequest:
		wanted := request.RequestedIPAddress()
		if wanted == nil || wanted.IsUnspecified() {
			wanted = request.ClientIPAddr
		}
		if !wanted.Equal(guest) {
			reply.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
			to.IP = net.IPv4bcast
			return reply.ToBytes(), to
		}
		reply.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck))
	case dhcpv4.MessageTypeInform:
		reply.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck))
		s.describe(reply)
		return reply.ToBytes(), to
	default:
		return nil, nil // release and decline change nothing
	}
	reply.YourIPAddr = guest
	reply.UpdateOption(dhcpv4.OptIPAddressLeaseTime(dhcpLease))
	s.describe(reply)
	return reply.ToBytes(), to
}

// describe adds what a client needs to know about the network.
func (s *side) describe(reply *dhcpv4.DHCPv4) {
	host := net.IP(s.host.AsSlice())
	reply.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(s.prefixLen(), 32)))
	reply.UpdateOption(dhcpv4.OptRouter(host))
	reply.UpdateOption(dhcpv4.OptDNS(host))
	reply.UpdateOption(dhcpv4.Option{Code: dhcpv4.OptionInterfaceMTU, Value: dhcpv4.Uint16(s.mtu)})
}
