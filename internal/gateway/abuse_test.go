package gateway_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// from connects from another address of this machine.
func (r *rig) from(source, address string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 10 * time.Second}
	return d.DialContext(context.Background(), "tcp", address)
}

// Ten thousand connections of all sorts of nonsense from one address: no other address notices, and nothing stays.
func TestAbuse(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	vm := r.Run(t)
	before := runtime.NumGoroutine()
	noise := make([]byte, 4096)
	rand.Read(noise)
	attacks := []func(address string, c net.Conn){
		func(string, net.Conn) {}, // half open
		func(_ string, c net.Conn) { _, _ = c.Write(noise) },
		func(_ string, c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-noise\r\n"); _, _ = c.Write(noise) },
		func(_ string, c net.Conn) { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n") },
		func(_ string, c net.Conn) {
			_ = tls.Client(c, &tls.Config{ServerName: "unknown.example.org", InsecureSkipVerify: true}).Handshake()
		},
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	for w := range 20 {
		all.Go(func() {
			for i := range 500 {
				address := []string{r.tls, r.ssh, r.raw}[i%3]
				c, err := r.from("127.0.0.2", address)
				if err != nil {
					continue
				}
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				attacks[(i+w)%len(attacks)](address, c)
				if i%25 == 0 {
					mu.Lock()
					open = append(open, c) // some hold on
					mu.Unlock()
					continue
				}
				_ = c.Close()
			}
		})
	}
	// Meanwhile, and while the rest is still open, others work as always.
	works := func() {
		t.Helper()
		client, err := r.loginSSH(vm.ID, r.signer(vm))
		r.must(err)
		if out, _, err := r.run(client, "echo fine"); out != "fine\n" || err != nil {
			t.Errorf("beside the noise: %q, %v", out, err)
		}
		client.Close()
	}
	for range 5 {
		works()
	}
	all.Wait()
	works()
	for _, c := range open {
		c.Close()
	}
	r.soon("the connections' goroutines are gone", func() bool { return runtime.NumGoroutine() <= before+20 })
}

// One address has a bounded number of connections, and fewer that do not say who they are.
func TestAllowance(t *testing.T) {
	t.Parallel()
	r := newRig(t) // 64 connections, 16 of them strangers
	held := make([]net.Conn, 0, 32)
	for range 32 {
		c, err := r.from("127.0.0.3", r.ssh)
		r.must(err)
		defer c.Close()
		held = append(held, c)
	}
	greeted := 0
	for _, c := range held {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 4)
		if _, err := io.ReadFull(c, buf); err == nil && string(buf) == "SSH-" {
			greeted++
		}
	}
	if greeted != 16 {
		t.Errorf("%d strangers of one address are served, want 16", greeted)
	}
	vm := r.Run(t)
	for range 20 { // who logs in is no stranger any more
		client, err := r.loginSSH(vm.ID, r.signer(vm))
		r.must(err)
		defer client.Close()
	}
}
