package gateway_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"vers/internal/gateway"
	"vers/internal/machine/machinetest"
)

// The way of the original's clients: TLS to the VM's name, and inside it SSH with the VM's own key.
func TestSSHInTLS(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	vm := r.Run(t)
	name := vm.ID + ".vm.example.org"
	conn, err := r.dialTLS(r.tls, name)
	r.must(err)
	client, err := r.login(conn, name, "root", r.signer(vm))
	r.must(err)

	out, errOut, err := r.run(client, "echo out; echo err >&2; exit 3")
	var exit *ssh.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 3 || out != "out\n" || errOut != "err\n" {
		t.Errorf("a command gives %q, %q, %v", out, errOut, err)
	}
	if _, _, err := r.run(client, "kill -TERM $$"); !errors.As(err, &exit) || exit.Signal() != "TERM" {
		t.Errorf("a command that a signal ends gives %v", err)
	}
	if out, _, err := r.run(client, "head -c 20000000 /dev/zero"); err != nil || len(out) != 20000000 {
		t.Errorf("20 MB of output: %d bytes, %v", len(out), err)
	}
	files, err := sftp.NewClient(client)
	r.must(err)
	defer files.Close()
	data := make([]byte, 5<<20)
	rand.Read(data)
	path := t.TempDir() + "/file"
	w, err := files.Create(path)
	r.must(err)
	_, err = w.ReadFrom(bytes.NewReader(data))
	r.must(errors.Join(err, w.Close()))
	back, err := files.Open(path)
	r.must(err)
	var got bytes.Buffer
	_, err = back.WriteTo(&got)
	r.must(errors.Join(err, back.Close()))
	if !bytes.Equal(got.Bytes(), data) {
		t.Errorf("a file of %d bytes came back with %d", len(data), got.Len())
	}
	// Keys are looked at for this name only.
	_, err = r.loginAt(name, "root", r.signer(r.Run(t)))
	if err == nil || !strings.Contains(err.Error(), "unable to authenticate") {
		t.Errorf("another VM's key logs in: %v", err)
	}
	if _, err = r.loginAt(name, "nobody", r.signer(vm)); err == nil {
		t.Error("another user logs in")
	}
}

func (r *rig) loginAt(name, user string, key ssh.Signer) (*ssh.Client, error) {
	conn, err := r.dialTLS(r.tls, name)
	r.must(err)
	return r.login(conn, name, user, key)
}

// Commands that end at once: the answer that they were started comes before their end.
func TestQuickCommands(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	vm := r.Run(t)
	client, err := r.loginSSH(vm.ID, r.signer(vm))
	r.must(err)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 50 {
				want := strconv.Itoa(i)
				if out, _, err := r.run(client, "printf "+want); err != nil || out != want {
					t.Errorf("command %d gives %q, %v", i, out, err)
				}
			}
		})
	}
	all.Wait()
}

func TestSSHKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	vm := r.Run(t)
	r.alias(vm, "dev")
	mine, line := r.newSigner()
	theirs, theirLine := r.newSigner()
	if _, err := r.loginSSH(vm.ID, mine); err == nil {
		t.Fatal("a key that nobody has added logs in")
	}
	added, err := r.registry.AddSSHKey(t.Context(), r.key, "", line)
	r.must(err)
	other, err := r.registry.Authenticate(t.Context(), r.stranger)
	r.must(err)
	_, err = r.registry.AddSSHKey(t.Context(), other, "", theirLine)
	r.must(err)

	for _, user := range []string{vm.ID, "dev"} {
		client, err := r.loginSSH(user, mine)
		r.must(err)
		if out, _, err := r.run(client, "cat /dev/stdin </dev/null; echo $VERS_TEST ok"); err != nil || strings.TrimSpace(out) != "ok" {
			t.Errorf("as %s: %q, %v", user, out, err)
		}
	}
	if _, err := r.loginSSH(vm.ID, theirs); err == nil {
		t.Error("another organisation's key logs in by id")
	}
	told := func(user string, key ssh.Signer, want string) {
		t.Helper()
		client, err := r.loginSSH(user, key)
		r.must(err)
		_, errOut, err := r.run(client, "true")
		var exit *ssh.ExitError
		if !errors.As(err, &exit) || exit.ExitStatus() != 255 || !strings.Contains(errOut, want) {
			t.Errorf("user %s is told %q, %v; want %q", user, errOut, err, want)
		}
	}
	told("dev", theirs, "no VM is called 'dev'")
	second := r.Run(t)
	r.alias(second, "dev")
	told("dev", mine, "2 VMs are called")
	r.must(r.Manager.Pause(t.Context(), r.Acme, second.ID, false))
	told(second.ID, mine, "paused")
	r.must(r.registry.RemoveSSHKey(t.Context(), r.Acme.OrgID, added.ID))
	if _, err := r.loginSSH(vm.ID, mine); err == nil {
		t.Error("a key that was removed logs in")
	}
}

// Forwarded ports, both ways, through the proxy.
func TestSSHForwarding(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	vm := r.Run(t)
	client, err := r.loginSSH(vm.ID, r.signer(vm))
	r.must(err)
	echo, err := net.Listen("tcp", "127.0.0.1:0") // guests of this rig run here
	r.must(err)
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	talk := func(conn net.Conn) {
		t.Helper()
		_, err := io.WriteString(conn, "hello")
		r.must(err)
		r.must(conn.(interface{ CloseWrite() error }).CloseWrite())
		if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
			t.Errorf("echo gives %q, %v", got, err)
		}
		conn.Close()
	}
	there, err := client.Dial("tcp", echo.Addr().String())
	r.must(err)
	talk(there)

	back, err := client.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	go func() {
		c, err := back.Accept()
		if err != nil {
			return
		}
		io.Copy(c, c)
		c.Close()
	}()
	in, err := net.Dial("tcp", back.Addr().String())
	r.must(err)
	talk(in)
	r.must(back.Close())
}

// Who has shown that he may needs no key.
func TestTrusted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	vm := r.Run(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	r.must(err)
	theirs, err := l.Accept()
	r.must(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.gateway.ServeTrusted(theirs, vm, vm.ID+gateway.SSHSuffix)
	}()
	c, channels, requests, err := ssh.NewClientConn(ours, vm.ID+gateway.SSHSuffix+":22", &ssh.ClientConfig{User: "root", HostKeyCallback: r.checkHost(), Timeout: machinetest.Patience})
	r.must(err)
	client := ssh.NewClient(c, channels, requests)
	if out, _, err := r.run(client, "echo in"); err != nil || out != "in\n" {
		t.Errorf("%q, %v", out, err)
	}
	client.Close()
	<-done
}
