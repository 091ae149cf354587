package netstack

import (
	"net/netip"
	"testing"
)

func TestKernelHostAddress(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "127.1.2.3": true, ownAddress: true, "10.99.1.77": true,
		"10.99.2.1": false, "9.9.9.9": false, "::1": true, "2606:2800::1": false,
	} {
		got, err := kernelHostAddress(netip.MustParseAddr(addr))
		if err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", addr, got, err, want)
		}
	}
}
