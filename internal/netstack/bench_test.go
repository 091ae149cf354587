package netstack

import (
	"io"
	"net"
	"runtime"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// sink reads everything and reports how much.
func sink(conn net.Conn, got chan<- int64) {
	n, _ := io.Copy(io.Discard, conn)
	got <- n
}

// pour measures a one-way stream of blocks.
func pour(b *testing.B, conn net.Conn, got <-chan int64) {
	block := make([]byte, 64<<10)
	b.SetBytes(int64(len(block)))
	b.ResetTimer()
	for range b.N {
		if _, err := conn.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	if n := <-got; n != int64(b.N)*int64(len(block)) {
		b.Fatalf("%d of %d bytes arrived", n, b.N*len(block))
	}
}

// To a guest that is another gVisor stack in this process: both ends and the sockets between them share the cores.
func BenchmarkDialGuestStream(b *testing.B) { benchmarkIn(b, mainNIC, 80) }
func BenchmarkDialAgentStream(b *testing.B) { benchmarkIn(b, controlNIC, agentPort) }

func benchmarkIn(b *testing.B, nic tcpip.NICID, port uint16) {
	n, guest := pair(b, Config{})
	got := make(chan int64, 1)
	guest.listen(controlNIC, agentPort, func(conn net.Conn) { sink(conn, got) })
	guest.listen(mainNIC, 80, func(conn net.Conn) { sink(conn, got) })
	var conn net.Conn
	var err error
	if nic == mainNIC {
		conn, err = n.DialGuest(b.Context(), port)
	} else {
		conn, err = n.DialAgent(b.Context())
	}
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	pour(b, conn, got)
}

// Both directions with Linux as the guest.
func BenchmarkKernelGuestIn(b *testing.B) {
	dir := shortDir(b)
	n := newTestNetwork(b, Config{Dir: dir})
	guest := newKernelGuest(b, dir)
	got := make(chan int64, 1)
	var listener net.Listener
	var err error
	guest.do(func() { listener, err = net.Listen("tcp4", "10.77.0.2:80") })
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			sink(conn, got)
		}
	}()
	conn, err := n.DialGuest(b.Context(), 80)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	pour(b, conn, got)
}

func BenchmarkKernelGuestOut(b *testing.B) {
	listener, err := net.Listen("tcp4", ownAddress+":0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	got := make(chan int64, 1)
	go func() {
		if conn, err := listener.Accept(); err == nil {
			sink(conn, got)
		}
	}()
	dir := shortDir(b)
	newTestNetwork(b, Config{Dir: dir, Egress: mustPolicy(b, "", []string{ownAddress}, nil)})
	guest := newKernelGuest(b, dir)
	conn, err := guest.dial("tcp4", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	pour(b, conn, got)
}

// A short exchange over a new connection to the agent, as every exec does.
func BenchmarkDialAgentRoundTrip(b *testing.B) {
	n, guest := pair(b, Config{})
	guest.listen(controlNIC, agentPort, echo)
	buf := make([]byte, 100)
	for b.Loop() {
		conn, err := n.DialAgent(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		_, _ = conn.Write(buf)
		if _, err := io.ReadFull(conn, buf); err != nil {
			b.Fatal(err)
		}
		_ = conn.Close()
	}
}

// What an idle network costs.
func BenchmarkIdleNetwork(b *testing.B) {
	const count = 100
	measure := func() (uint64, uint64, int) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, m.StackInuse, runtime.NumGoroutine()
	}
	for b.Loop() {
		heap, stacks, goroutines := measure()
		networks := make([]*Network, count)
		for i := range networks {
			networks[i] = newTestNetwork(b, Config{})
		}
		heap2, stacks2, goroutines2 := measure()
		b.ReportMetric(float64(heap2-heap)/count, "heap-B/network")
		b.ReportMetric(float64(stacks2-stacks)/count, "stack-B/network")
		b.ReportMetric(float64(goroutines2-goroutines)/count, "goroutines/network")
		for _, n := range networks {
			_ = n.Close()
		}
	}
}
