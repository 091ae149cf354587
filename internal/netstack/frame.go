package netstack

import (
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// verdict is what happens to a frame from the guest.
type verdict int

const (
	frameDropped verdict = iota // of no interest: IPv6, multicast, noise
	frameSpoofed                // pretends to come from somebody else
	frameARP                    // a question for our address
	frameIPv4                   // for the stack
)

// inspect decides about a frame from the guest. It is the only way in: the guest may send what it likes, so only what
// is known to be needed passes, with the addresses that the guest was given.
func (s *side) inspect(frame []byte) verdict {
	if len(frame) < header.EthernetMinimumSize {
		return frameDropped
	}
	eth := header.Ethernet(frame)
	if [6]byte(frame[6:12]) != s.guestMAC {
		return frameSpoofed
	}
	destination := [6]byte(frame[0:6])
	broadcast := destination == [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if destination != s.hostMAC && !broadcast {
		return frameDropped
	}
	payload := frame[header.EthernetMinimumSize:]
	switch eth.Type() {
	case header.ARPProtocolNumber:
		return s.inspectARP(payload)
	case header.IPv4ProtocolNumber:
		return s.inspectIPv4(payload)
	}
	return frameDropped
}

func (s *side) inspectARP(packet []byte) verdict {
	arp := header.ARP(packet)
	if !arp.IsValid() {
		return frameDropped
	}
	sender := [4]byte(arp.ProtocolAddressSender())
	// A probe for a duplicate address (RFC 5227) has no sender address yet.
	if [6]byte(arp.HardwareAddressSender()) != s.guestMAC || (sender != s.guest.As4() && sender != [4]byte{}) {
		return frameSpoofed
	}
	if arp.Op() != header.ARPRequest || [4]byte(arp.ProtocolAddressTarget()) != s.host.As4() {
		return frameDropped
	}
	return frameARP
}

func (s *side) inspectIPv4(packet []byte) verdict {
	ip := header.IPv4(packet)
	if !ip.IsValid(len(packet)) {
		return frameDropped
	}
	transport := packet[ip.HeaderLength():ip.TotalLength()]
	first := ip.FragmentOffset() == 0
	source, destination := ip.SourceAddressSlice(), ip.DestinationAddressSlice()
	if s.nic == mainNIC && [4]byte(source) == [4]byte{} {
		// A DHCP client without an address is the one exception from the rule below.
		udp := header.UDP(transport)
		if ip.Protocol() == uint8(header.UDPProtocolNumber) && first && !ip.More() && len(udp) >= header.UDPMinimumSize &&
			udp.SourcePort() == dhcpClientPort && udp.DestinationPort() == dhcpServerPort {
			return frameIPv4
		}
		return frameSpoofed
	}
	if [4]byte(source) != s.guest.As4() {
		return frameSpoofed
	}
	if s.nic == controlNIC {
		return s.inspectControl(ip, transport)
	}
	switch ip.TransportProtocol() {
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
		return frameIPv4
	case header.ICMPv4ProtocolNumber:
		// Echo of the gateway only: nothing that tells the stack to change routes or sizes.
		if [4]byte(destination) == s.host.As4() && first && !ip.More() && len(transport) >= header.ICMPv4MinimumSize &&
			header.ICMPv4(transport).Type() == header.ICMPv4Echo {
			return frameIPv4
		}
	}
	return frameDropped
}

// inspectControl lets through what belongs to connections that we made to the agent, and nothing else: the guest
// opens no connection on the control network.
func (s *side) inspectControl(ip header.IPv4, transport []byte) verdict {
	if ip.TransportProtocol() != header.TCPProtocolNumber || ip.FragmentOffset() != 0 || ip.More() ||
		[4]byte(ip.DestinationAddressSlice()) != s.host.As4() || len(transport) < header.TCPMinimumSize {
		return frameDropped
	}
	tcp := header.TCP(transport)
	if tcp.SourcePort() != agentPort || tcp.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) == header.TCPFlagSyn {
		return frameDropped
	}
	return frameIPv4
}

// arpReply answers a frame that inspect called frameARP.
func (s *side) arpReply(request []byte) []byte {
	reply := make([]byte, header.EthernetMinimumSize+header.ARPSize)
	header.Ethernet(reply).Encode(&header.EthernetFields{
		SrcAddr: s.linkAddress(), DstAddr: s.guestLinkAddress(), Type: header.ARPProtocolNumber,
	})
	question := header.ARP(request[header.EthernetMinimumSize:])
	answer := header.ARP(reply[header.EthernetMinimumSize:])
	answer.SetIPv4OverEthernet()
	answer.SetOp(header.ARPReply)
	copy(answer.HardwareAddressSender(), s.hostMAC[:])
	copy(answer.ProtocolAddressSender(), question.ProtocolAddressTarget())
	copy(answer.HardwareAddressTarget(), question.HardwareAddressSender())
	copy(answer.ProtocolAddressTarget(), question.ProtocolAddressSender())
	return reply
}
