package netstack

import (
	"net"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// packet describes a frame of the guest; the zero value of a field means what is right.
type packet struct {
	sourceMAC, destinationMAC tcpip.LinkAddress
	kind                      tcpip.NetworkProtocolNumber
	source, destination       string
	protocol                  tcpip.TransportProtocolNumber
	offset                    uint16
	payload                   []byte
}

func (p packet) frame(s side) []byte {
	set := func(text *string, addr string) {
		if *text == "" {
			*text = addr
		}
	}
	set(&p.source, s.guest.String())
	set(&p.destination, s.host.String())
	if p.sourceMAC == "" {
		p.sourceMAC = s.guestLinkAddress()
	}
	if p.destinationMAC == "" {
		p.destinationMAC = s.linkAddress()
	}
	if p.kind == 0 {
		p.kind = header.IPv4ProtocolNumber
	}
	frame := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+len(p.payload))
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: p.sourceMAC, DstAddr: p.destinationMAC, Type: p.kind})
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + len(p.payload)), TTL: 64, Protocol: uint8(p.protocol), FragmentOffset: p.offset,
		SrcAddr: tcpip.AddrFrom4Slice(net.ParseIP(p.source).To4()), DstAddr: tcpip.AddrFrom4Slice(net.ParseIP(p.destination).To4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	copy(ip.Payload(), p.payload)
	return frame
}

func tcpSegment(source, destination uint16, flags header.TCPFlags) []byte {
	segment := header.TCP(make([]byte, header.TCPMinimumSize))
	segment.Encode(&header.TCPFields{SrcPort: source, DstPort: destination, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 1000})
	return segment
}

func udpDatagram(source, destination uint16) []byte {
	datagram := header.UDP(make([]byte, header.UDPMinimumSize))
	datagram.Encode(&header.UDPFields{SrcPort: source, DstPort: destination, Length: header.UDPMinimumSize})
	return datagram
}

func icmpMessage(kind header.ICMPv4Type) []byte {
	message := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+8))
	message.SetType(kind)
	message.SetIdent(7)
	message.SetChecksum(^checksum.Checksum(message, 0))
	return message
}

func arpFrame(s side, op header.ARPOp, senderMAC [6]byte, sender, target string) []byte {
	frame := make([]byte, header.EthernetMinimumSize+header.ARPSize)
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: s.guestLinkAddress(), DstAddr: header.EthernetBroadcastAddress, Type: header.ARPProtocolNumber,
	})
	arp := header.ARP(frame[header.EthernetMinimumSize:])
	arp.SetIPv4OverEthernet()
	arp.SetOp(op)
	copy(arp.HardwareAddressSender(), senderMAC[:])
	copy(arp.ProtocolAddressSender(), net.ParseIP(sender).To4())
	copy(arp.ProtocolAddressTarget(), net.ParseIP(target).To4())
	return frame
}

func TestInspect(t *testing.T) {
	main, control := mainSide(), controlSide()
	const syn, ack = header.TCPFlagSyn, header.TCPFlagAck
	tcp := packet{protocol: header.TCPProtocolNumber, destination: "93.184.216.34", payload: tcpSegment(40000, 443, syn)}
	agent := packet{protocol: header.TCPProtocolNumber, payload: tcpSegment(agentPort, 40000, syn|ack)}
	with := func(p packet, change func(*packet)) packet { change(&p); return p }
	other := [6]byte{2, 0, 0, 0, 0, 9}
	tests := []struct {
		name  string
		side  side
		frame []byte
		want  verdict
	}{
		{"TCP", main, tcp.frame(main), frameIPv4},
		{"foreign MAC", main, with(tcp, func(p *packet) { p.sourceMAC = tcpip.LinkAddress(other[:]) }).frame(main), frameSpoofed},
		{"our own MAC", main, with(tcp, func(p *packet) { p.sourceMAC = main.linkAddress() }).frame(main), frameSpoofed},
		{"foreign IP", main, with(tcp, func(p *packet) { p.source = "10.77.0.3" }).frame(main), frameSpoofed},
		{"our IP", main, with(tcp, func(p *packet) { p.source = mainHost }).frame(main), frameSpoofed},
		{"loopback IP", main, with(tcp, func(p *packet) { p.source = "127.0.0.1" }).frame(main), frameSpoofed},
		{"control IP on the main network", main, with(tcp, func(p *packet) { p.source = controlGuest }).frame(main), frameSpoofed},
		{"no IP, not DHCP", main, with(tcp, func(p *packet) { p.source = "0.0.0.0" }).frame(main), frameSpoofed},
		{"no IP, UDP to another port", main, packet{source: "0.0.0.0", protocol: header.UDPProtocolNumber, payload: udpDatagram(68, 53)}.frame(main), frameSpoofed},
		{"no IP, DHCP", main, packet{source: "0.0.0.0", destination: "255.255.255.255", protocol: header.UDPProtocolNumber, payload: udpDatagram(68, 67)}.frame(main), frameIPv4},
		{"no IP, DHCP fragment", main, packet{source: "0.0.0.0", offset: 8, protocol: header.UDPProtocolNumber, payload: udpDatagram(68, 67)}.frame(main), frameSpoofed},
		{"for another machine", main, with(tcp, func(p *packet) { p.destinationMAC = tcpip.LinkAddress(other[:]) }).frame(main), frameDropped},
		{"IPv6", main, with(tcp, func(p *packet) { p.kind = header.IPv6ProtocolNumber }).frame(main), frameDropped},
		{"echo request", main, packet{protocol: header.ICMPv4ProtocolNumber, payload: icmpMessage(header.ICMPv4Echo)}.frame(main), frameIPv4},
		{"echo request beyond", main, packet{destination: "9.9.9.9", protocol: header.ICMPv4ProtocolNumber, payload: icmpMessage(header.ICMPv4Echo)}.frame(main), frameDropped},
		{"redirect", main, packet{protocol: header.ICMPv4ProtocolNumber, payload: icmpMessage(header.ICMPv4Redirect)}.frame(main), frameDropped},
		{"GRE", main, packet{protocol: 47, payload: make([]byte, 20)}.frame(main), frameDropped},
		{"UDP fragment", main, packet{destination: "9.9.9.9", offset: 1480, protocol: header.UDPProtocolNumber, payload: make([]byte, 20)}.frame(main), frameIPv4},
		{"truncated IP", main, tcp.frame(main)[:header.EthernetMinimumSize+30], frameDropped},
		{"truncated Ethernet", main, tcp.frame(main)[:10], frameDropped},
		{"empty", main, nil, frameDropped},

		{"agent's answer", control, agent.frame(control), frameIPv4},
		{"agent from another port", control, with(agent, func(p *packet) { p.payload = tcpSegment(22, 40000, ack) }).frame(control), frameDropped},
		{"connection from the guest", control, with(agent, func(p *packet) { p.payload = tcpSegment(agentPort, 22, syn) }).frame(control), frameDropped},
		{"to the world", control, with(agent, func(p *packet) { p.destination = "93.184.216.34" }).frame(control), frameDropped},
		{"to the gateway", control, with(agent, func(p *packet) { p.destination = mainHost }).frame(control), frameDropped},
		{"main IP on the control network", control, with(agent, func(p *packet) { p.source = mainGuest }).frame(control), frameSpoofed},
		{"UDP on the control network", control, packet{protocol: header.UDPProtocolNumber, payload: udpDatagram(agentPort, 53)}.frame(control), frameDropped},
		{"DHCP on the control network", control, packet{source: "0.0.0.0", protocol: header.UDPProtocolNumber, payload: udpDatagram(68, 67)}.frame(control), frameSpoofed},
		{"echo on the control network", control, packet{protocol: header.ICMPv4ProtocolNumber, payload: icmpMessage(header.ICMPv4Echo)}.frame(control), frameDropped},
		{"fragment on the control network", control, with(agent, func(p *packet) { p.offset = 8 }).frame(control), frameDropped},

		{"ARP", main, arpFrame(main, header.ARPRequest, main.guestMAC, mainGuest, mainHost), frameARP},
		{"ARP probe", main, arpFrame(main, header.ARPRequest, main.guestMAC, "0.0.0.0", mainHost), frameARP},
		{"ARP for another", main, arpFrame(main, header.ARPRequest, main.guestMAC, mainGuest, "10.77.0.9"), frameDropped},
		{"ARP reply", main, arpFrame(main, header.ARPReply, main.guestMAC, mainGuest, mainHost), frameDropped},
		{"ARP with foreign MAC inside", main, arpFrame(main, header.ARPRequest, other, mainGuest, mainHost), frameSpoofed},
		{"ARP with foreign IP inside", main, arpFrame(main, header.ARPRequest, main.guestMAC, "10.77.0.9", mainHost), frameSpoofed},
		{"ARP, control", control, arpFrame(control, header.ARPRequest, control.guestMAC, controlGuest, controlHost), frameARP},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.side.inspect(tt.frame); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func FuzzInspect(f *testing.F) {
	main, control := mainSide(), controlSide()
	f.Add(packet{protocol: header.TCPProtocolNumber, payload: tcpSegment(1, 2, header.TCPFlagSyn)}.frame(main))
	f.Add(packet{protocol: header.TCPProtocolNumber, payload: tcpSegment(agentPort, 2, header.TCPFlagAck)}.frame(control))
	f.Add(arpFrame(main, header.ARPRequest, main.guestMAC, mainGuest, mainHost))
	f.Add(packet{protocol: header.ICMPv4ProtocolNumber, payload: icmpMessage(header.ICMPv4Echo)}.frame(main))
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, s := range []side{main, control} {
			switch s.inspect(frame) {
			case frameARP:
				s.arpReply(frame)
			case frameIPv4:
				source := header.IPv4(frame[header.EthernetMinimumSize:]).SourceAddress()
				if source != tcpipAddress(s.guest) && source != tcpip.AddrFrom4([4]byte{}) {
					t.Fatalf("a frame from %s passed", source)
				}
			}
		}
	})
}

// Hostile frames over the real socket: nothing comes back, nothing breaks, they are counted.
func TestSpoofedFrames(t *testing.T) {
	n, guest := pair(t, Config{Egress: mustPolicy(t, "", []string{ownAddress}, nil)})
	main, control := guest.main(), guest.control()
	echo := packet{protocol: header.ICMPv4ProtocolNumber, payload: icmpMessage(header.ICMPv4Echo)}
	for range 10 {
		foreign := echo
		foreign.source = "10.77.0.9"
		main.send(foreign.frame(main.side))
		control.send(echo.frame(control.side))
		control.send(packet{protocol: header.TCPProtocolNumber, destination: ownAddress, payload: tcpSegment(agentPort, 80, header.TCPFlagSyn)}.frame(control.side))
		main.send(nil)
		main.send(make([]byte, 1<<16-100))
	}
	main.drain()
	// The gateway itself answers an honest echo, after all of that.
	main.send(echo.frame(main.side))
	main.await("an echo reply", func(frame []byte) bool {
		ip := header.IPv4(frame[header.EthernetMinimumSize:])
		return header.Ethernet(frame).Type() == header.IPv4ProtocolNumber &&
			ip.TransportProtocol() == header.ICMPv4ProtocolNumber && header.ICMPv4(ip.Payload()).Type() == header.ICMPv4EchoReply
	})
	if got := n.Stats().FramesSpoofed; got != 10 {
		t.Errorf("%d spoofed frames counted", got)
	}
	eventually(t, "40 frames dropped", func() bool { return n.Stats().FramesDropped >= 40 })
	select {
	case frame := <-control.seen:
		t.Errorf("the control network answered: %x", frame)
	default:
	}
}

// Nothing leads from the control network into the main one or out.
func TestControlNetworkIsClosed(t *testing.T) {
	served := serveTCP(t, ownAddress+":0", echoTCP)
	n, guest := pair(t, Config{Egress: mustPolicy(t, "", []string{ownAddress}, nil)})
	guest.stack.SetRouteTable([]tcpip.Route{{
		Destination: header.IPv4EmptySubnet, Gateway: tcpipAddress(controlSide().host), NIC: controlNIC,
	}})
	for _, address := range []string{served, mainHost + ":53", controlHost + ":53", controlHost + ":22"} {
		ctx := soon(t)
		done := make(chan error, 1)
		go func() {
			conn, err := guest.dial(ctx, address)
			if err == nil {
				_ = conn.Close()
			}
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil {
				t.Errorf("%s was reached over the control network", address)
			}
		case <-time.After(100 * time.Millisecond): // silence is right, too
		}
	}
	if n.Stats().TCPFlows != 0 {
		t.Error("a flow came to be")
	}
}
