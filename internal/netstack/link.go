package netstack

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func (s *side) linkAddress() tcpip.LinkAddress      { return tcpip.LinkAddress(s.hostMAC[:]) }
func (s *side) guestLinkAddress() tcpip.LinkAddress { return tcpip.LinkAddress(s.guestMAC[:]) }

// link is one network card of our stack. There is exactly one machine at the other end, whose address is known: it
// puts that address into every frame, so the stack never asks for it and no connection waits for an ARP answer.
type link struct {
	side
	rx       *receiver
	tx       *sender
	counters *counters
	traffic
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
	scratch    []byte // frame under construction; WritePackets is called by one goroutine, the queue's
	reader     sync.WaitGroup

	syns synTable
}

// traffic counts the frames of one card.
type traffic struct{ received, sent, bytesReceived, bytesSent atomic.Uint64 }

var _ stack.LinkEndpoint = (*link)(nil)

func newLink(s side, dir *directory, uid, gid int, counters *counters) (*link, error) {
	rx, err := bindReceiver(dir, s.hostSock, uid, gid)
	if err != nil {
		return nil, err
	}
	tx, err := newSender(dir, s.vmSock, uid)
	if err != nil {
		rx.close()
		return nil, err
	}
	return &link{
		side: s, rx: rx, tx: tx, counters: counters,
		scratch: make([]byte, int(s.mtu)+header.EthernetMinimumSize),
	}, nil
}

// run reads frames until the socket is closed.
func (l *link) run() {
	l.reader.Go(func() {
		// One byte more than fits, so that a frame that is too long shows.
		frame := make([]byte, len(l.scratch)+1)
		for {
			n, err := l.rx.file.Read(frame)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			// An empty datagram reads as the end of a file; nothing else can go wrong for good with a socket
			// that is not connected.
			if err != nil || n == len(frame) {
				l.counters.dropped.Add(1)
				continue
			}
			l.receive(frame[:n])
		}
	})
}

func (l *link) receive(frame []byte) {
	l.counters.received.Add(1)
	l.received.Add(1)
	l.bytesReceived.Add(uint64(len(frame)))
	switch l.inspect(frame) {
	case frameSpoofed:
		l.counters.spoofed.Add(1)
	case frameDropped:
		l.counters.dropped.Add(1)
	case frameARP:
		l.tx.trySend(l.arpReply(frame))
	case frameIPv4:
		dispatcher := l.dispatcher.Load()
		if dispatcher == nil {
			return
		}
		// The copy goes into a pooled chunk; the stack keeps it as long as it needs.
		view := buffer.NewViewWithData(frame[header.EthernetMinimumSize:])
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
		pkt.RXChecksumValidated = true
		(*dispatcher).DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
		pkt.DecRef()
	}
}

// WritePackets sends frames to the guest and waits while its queue is full. Only the queueing discipline calls it.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	sent := 0
	for _, pkt := range pkts.AsSlice() {
		frame := l.scratch[:0]
		frame = append(frame, l.guestMAC[:]...)
		frame = append(frame, l.hostMAC[:]...)
		frame = append(frame, byte(pkt.NetworkProtocolNumber>>8), byte(pkt.NetworkProtocolNumber))
		for _, part := range pkt.AsSlices() {
			frame = append(frame, part...)
		}
		l.syns.note(frame)
		if l.tx.send(frame) {
			sent++
			l.bytesSent.Add(uint64(len(frame)))
		}
	}
	l.sent.Add(uint64(sent))
	l.counters.sent.Add(uint64(sent))
	return sent, nil
}

// close removes the socket and ends run and a blocked WritePackets.
func (l *link) close() {
	l.rx.close()
	l.tx.close()
	l.reader.Wait()
}

// What follows tells the stack about the card.

// MTU is the largest IP packet.
func (l *link) MTU() uint32 { return l.mtu }

// SetMTU does nothing: the size is a fact agreed with QEMU.
func (l *link) SetMTU(uint32) {}

// MaxHeaderLength is zero, as WritePackets adds the Ethernet header itself.
func (l *link) MaxHeaderLength() uint16 { return 0 }

// LinkAddress is our MAC address.
func (l *link) LinkAddress() tcpip.LinkAddress { return l.linkAddress() }

// SetLinkAddress does nothing: the address is fixed.
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities says that no addresses need resolving and that checksums from the guest need no check: the frame
// comes through memory, and what we forward gets a new one from the host's kernel.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach connects the card with the stack, or with nil takes it off.
func (l *link) Attach(dispatcher stack.NetworkDispatcher) {
	if dispatcher == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&dispatcher)
}

// IsAttached tells whether the card belongs to a stack.
func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

// Wait returns when no frame is being read any more.
func (l *link) Wait() { l.reader.Wait() }

// ARPHardwareType is none: the stack sees no link layer.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader, ParseHeader, Close and SetOnCloseAction have nothing to do.
func (l *link) AddHeader(*stack.PacketBuffer) {}

// ParseHeader has nothing to do.
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close has nothing to do; Network.Close closes the sockets.
func (l *link) Close() {}

// SetOnCloseAction has nothing to do.
func (l *link) SetOnCloseAction(func()) {}
