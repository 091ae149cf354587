package egress

import "time"

// Counters count what went over a VM's own network card. They only rise.
type Counters struct {
	BytesOut       uint64 // sent by the guest, whole Ethernet frames
	BytesIn        uint64 // sent to the guest
	PacketsOut     uint64
	PacketsIn      uint64
	ConnectionsOut uint64 // TCP connections and UDP flows that the guest opened
	ConnectionsIn  uint64 // TCP connections to the guest
	Refused        uint64 // connections, datagrams and names that a policy refused
	Limited        uint64 // connections that a limit held up or ended
	Spoofed        uint64 // frames that pretended to come from somebody else
}

// Add sums counters.
func (c Counters) Add(o Counters) Counters {
	return Counters{
		BytesOut: c.BytesOut + o.BytesOut, BytesIn: c.BytesIn + o.BytesIn,
		PacketsOut: c.PacketsOut + o.PacketsOut, PacketsIn: c.PacketsIn + o.PacketsIn,
		ConnectionsOut: c.ConnectionsOut + o.ConnectionsOut, ConnectionsIn: c.ConnectionsIn + o.ConnectionsIn,
		Refused: c.Refused + o.Refused, Limited: c.Limited + o.Limited, Spoofed: c.Spoofed + o.Spoofed,
	}
}

// Refusal is something that a policy refused, once or several times in a row.
type Refusal struct {
	Time        time.Time // of the last time
	Protocol    string    // tcp, udp, dns
	Destination string    // address:port, or a name
	Reason      string    // which level and rule
	Count       uint64
}
