package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"vers/internal/partial"
)

// through sends a word over a connection to an echo and wants it back.
func through(t *testing.T, conn net.Conn) {
	t.Helper()
	defer func() { _ = conn.Close() }()
	_, err := conn.Write([]byte("through"))
	must(t, err)
	buf := make([]byte, 7)
	_, err = io.ReadFull(conn, buf)
	must(t, err)
	if string(buf) != "through" {
		t.Errorf("got %q", buf)
	}
}

func TestRemoteForwarding(t *testing.T) {
	r := newRig(t)
	client := r.login()
	l, err := client.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go echo(l)
	address := l.Addr().String()
	if strings.HasSuffix(address, ":0") {
		t.Fatalf("the answer names no port: %s", address)
	}
	conn, err := net.Dial("tcp", address)
	must(t, err)
	through(t, conn)
	if _, err := client.Listen("tcp", address); err == nil {
		t.Error("one port was given twice")
	}
	must(t, l.Close())
	if _, err := net.Dial("tcp", address); err == nil {
		t.Error("cancelled, and still listening")
	}

	socket := filepath.Join(r.root, "socket")
	u, err := client.ListenUnix(socket)
	must(t, err)
	go echo(u)
	conn, err = net.Dial("unix", socket)
	must(t, err)
	through(t, conn)

	// What a client listens on goes with it.
	l, err = client.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, client.Close())
	r.eventually("the listeners are closed", func() bool {
		_, tcpErr := net.Dial("tcp", l.Addr().String())
		_, unixErr := net.Dial("unix", socket)
		return tcpErr != nil && unixErr != nil
	})
}

// Without an address, and with localhost, as stock clients send it, remote forwarding is reached from the guest only.
func TestBind(t *testing.T) {
	for asked, loopback := range map[string]bool{"localhost": true, "127.0.0.1": true, "": false, "*": false, "0.0.0.0": false} {
		listeners, err := bind(asked, 0)
		must(t, err)
		for _, l := range listeners {
			if ip := l.Addr().(*net.TCPAddr).IP; ip.IsLoopback() != loopback {
				t.Errorf("%q is bound to %v", asked, ip)
			}
			_ = l.Close()
		}
	}
	if _, err := bind("192.0.2.1", 0); err == nil {
		t.Error("bound to an address that is not there")
	}
}

// A channel of a client that has gone must not hold a connection to a service that says nothing.
func TestForwardingEnds(t *testing.T) {
	client := newRig(t).login()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	ended := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		data, _ := io.ReadAll(conn) // the write direction stays open
		_ = conn.(*net.TCPConn).SetReadDeadline(time.Now().Add(20 * time.Second))
		for err == nil {
			_, err = conn.Write([]byte("x"))
		}
		ended <- string(data)
	}()
	conn, err := client.Dial("tcp", l.Addr().String())
	must(t, err)
	_, err = conn.Write([]byte("last words"))
	must(t, err)
	must(t, conn.Close())
	select {
	case data := <-ended:
		if data != "last words" {
			t.Errorf("arrived: %q", data)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the connection inside goes on")
	}
}

func TestChannelLimit(t *testing.T) {
	client := newRig(t).login()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	go echo(l)
	var open []net.Conn
	for range maxChannels {
		conn, err := client.Dial("tcp", l.Addr().String())
		must(t, err)
		open = append(open, conn)
	}
	var refused *ssh.OpenChannelError
	if _, err := client.Dial("tcp", l.Addr().String()); !errors.As(err, &refused) || refused.Reason != ssh.ResourceShortage {
		t.Errorf("one too many: %v", err)
	}
	through(t, open[0])
	for range 1000 { // its place is free once the agent has seen the end
		if conn, err := client.Dial("tcp", l.Addr().String()); err == nil {
			through(t, conn)
			return
		}
	}
	t.Error("no channel is possible after one was closed")
}

// Clients that connect and do not log in are dropped for others, oldest first, and hinder nobody.
func TestHalfOpenLogins(t *testing.T) {
	r := newRig(t)
	id, _ := newIdentity(t, "ssh")
	_, err := r.client.Renew(t.Context(), id)
	must(t, err)
	var idle []net.Conn
	for range maxLogins + 8 {
		conn, err := r.client.SSH(t.Context())
		must(t, err)
		defer func() { _ = conn.Close() }()
		_, err = io.ReadFull(conn, make([]byte, len("SSH-2.0-vers"))) // the server has begun with it
		must(t, err)
		idle = append(idle, conn)
	}
	for _, conn := range idle[:8] {
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, io.EOF) {
			t.Logf("dropped with %v", err)
		}
	}
	r.server.logins.mu.Lock()
	waiting := len(r.server.logins.waiting)
	r.server.logins.mu.Unlock()
	if waiting > maxLogins {
		t.Errorf("%d wait", waiting)
	}
	if out := r.sh("echo alive"); out.stdout.String() != "alive\n" {
		t.Error("the agent does not answer")
	}
}

// Stock ssh: forwarding both ways, and its agent, in the session that asked for it and after it no more.
func TestStockForwarding(t *testing.T) {
	r := newRig(t)
	options := r.stock()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	go echo(l)

	agentSocket := filepath.Join(t.TempDir(), "a")
	agentProcess := exec.Command("ssh-agent", "-D", "-a", agentSocket)
	must(t, agentProcess.Start())
	defer func() {
		_ = agentProcess.Process.Kill()
		_ = agentProcess.Wait()
	}()
	r.eventually("the agent listens", func() bool { _, err := os.Stat(agentSocket); return err == nil })
	env := append(os.Environ(), "SSH_AUTH_SOCK="+agentSocket)
	private, public := keyPair(t)
	keyFile := filepath.Join(t.TempDir(), "k")
	must(t, os.WriteFile(keyFile, []byte(private), 0o600))
	add := exec.Command("ssh-add", keyFile)
	add.Env = env
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %v: %s", err, out)
	}

	// bash talks to the forwarded port by /dev/tcp; ssh-add asks the forwarded agent.
	_, port, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	script := `ssh-add -L && echo "$SSH_AUTH_SOCK" && read -r port && exec 3<>/dev/tcp/127.0.0.1/$port && echo hello >&3 && read -r back <&3 && echo "back $back"`
	cmd := exec.Command("ssh", append(options, "-A", "-v", "-R", "0:127.0.0.1:"+port, "root@127.0.0.1", "bash", "-c", "'"+script+"'")...)
	for i, o := range cmd.Args {
		if o == "LogLevel=ERROR" {
			cmd.Args[i] = "LogLevel=INFO" // which tells the port
		}
	}
	cmd.Env = env
	in, err := cmd.StdinPipe()
	must(t, err)
	stderr, err := cmd.StderrPipe()
	must(t, err)
	var out bytes.Buffer
	cmd.Stdout = &out
	must(t, cmd.Start())
	var said strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(said.String(), "Allocated port ") {
		n, err := stderr.Read(buf)
		if said.Write(buf[:n]); err != nil {
			t.Fatalf("ssh says no port: %v\n%s", err, &said)
		}
	}
	_, allocated, _ := strings.Cut(said.String(), "Allocated port ")
	_, err = io.WriteString(in, strings.Fields(allocated)[0]+"\n")
	must(t, err)
	_, _ = io.Copy(io.Discard, stderr)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) < 3 || strings.Fields(lines[0])[1] != strings.Fields(public)[1] || lines[2] != "back hello" {
		t.Fatalf("output %q", out.String())
	}
	r.eventually("the socket is gone", func() bool { _, err := os.Stat(filepath.Dir(lines[1])); return errors.Is(err, os.ErrNotExist) })
	if _, err := os.Stat(filepath.Join(r.root, agentDir)); err != nil {
		t.Errorf("the socket was elsewhere: %s", lines[1])
	}

	// -X is refused, and the rest works.
	cmd = exec.Command("ssh", append(options, "-X", "root@127.0.0.1", "echo display=$DISPLAY sock=$SSH_AUTH_SOCK")...)
	cmd.Env = append(os.Environ(), "DISPLAY=:9", "SSH_AUTH_SOCK=")
	if got, err := cmd.Output(); err != nil || strings.Contains(string(got), r.root) {
		t.Errorf("ssh -X: %q, %v", got, err)
	}
}

// Links made over SFTP keep their targets, relative ones too.
func TestSFTPLinks(t *testing.T) {
	r := newRig(t)
	files, err := sftp.NewClient(r.login())
	must(t, err)
	defer func() { _ = files.Close() }()
	for path, target := range map[string]string{
		filepath.Join(r.root, "relative"): "../x/y", filepath.Join(r.root, "absolute"): "/x/y", filepath.Join(r.root, "odd"): "a\nb", "in-home": "x",
	} {
		must(t, files.Symlink(target, path))
		local := path
		if !filepath.IsAbs(path) {
			local = filepath.Join(r.root, "home", path)
		}
		if got, err := os.Readlink(local); err != nil || got != target {
			t.Errorf("%s leads to %q, %v, want %q", path, got, err, target)
		}
		if got, err := files.ReadLink(path); err != nil || got != target {
			t.Errorf("SFTP says that %s leads to %q, %v", path, got, err)
		}
	}
	if err := files.Symlink("z", filepath.Join(r.root, "relative")); err == nil {
		t.Error("a link was replaced")
	}
	if err := files.Symlink("z", filepath.Join(r.root, "no/such/folder")); err == nil {
		t.Error("a link in a folder that is not there")
	}
	if _, err := files.Stat(r.root); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// ask opens a channel for comparing files.
func ask(t *testing.T, client *ssh.Client, req partial.Request) (next func() (partial.Answer, error), end func()) {
	t.Helper()
	session, err := client.NewSession()
	must(t, err)
	in, err := session.StdinPipe()
	must(t, err)
	out, err := session.StdoutPipe()
	must(t, err)
	must(t, session.RequestSubsystem(partial.Subsystem))
	next, err = partial.Ask(struct {
		io.Reader
		io.Writer
	}{out, in}, req)
	must(t, err)
	return next, func() { _ = session.Close() }
}

func TestPartial(t *testing.T) {
	r := newRig(t)
	client := r.login()
	content := bytes.Repeat([]byte("0123456789abcdef"), (partial.Block+1000)/16)
	path := filepath.Join(r.root, "home", "file")
	must(t, os.WriteFile(path, content, 0o644))
	next, end := ask(t, client, partial.Request{Op: partial.OpDigests, Path: "file", Bytes: 1 << 40})
	var sums [][]byte
	for {
		a, err := next()
		must(t, err)
		if a.Done {
			break
		}
		sums = append(sums, a.Digest)
	}
	end()
	sum := func(block []byte) []byte { return binary.BigEndian.AppendUint64(nil, xxhash.Sum64(block)) }
	if len(sums) != 2 || !bytes.Equal(sums[0], sum(content[:partial.Block])) || !bytes.Equal(sums[1], sum(content[partial.Block:])) {
		t.Errorf("%d digests, not those of the file", len(sums))
	}

	part := filepath.Join(r.root, "part")
	next, end = ask(t, client, partial.Request{Op: partial.OpHold, Path: part})
	a, err := next()
	must(t, err)
	if info, err := os.Stat(part); err != nil || info.Size() != 0 || a.Bytes != 0 || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v %v", a, info, err)
	}
	another, endOther := ask(t, client, partial.Request{Op: partial.OpHold, Path: part})
	if _, err := another(); !errors.Is(err, partial.ErrBusy) {
		t.Errorf("held twice: %v", err)
	}
	endOther()
	end()
	r.eventually("it is free again", func() bool {
		next, end := ask(t, client, partial.Request{Op: partial.OpHold, Path: part})
		defer end()
		_, err := next()
		return err == nil
	})
	for _, req := range []partial.Request{
		{Op: "delete", Path: path}, {Op: partial.OpDigests, Path: "none", Bytes: 1}, {Op: partial.OpDigests, Path: r.root, Bytes: 1},
		{Op: partial.OpHold, Path: r.root}, {Op: partial.OpHold, Path: "/no/such/folder/f"},
	} {
		next, end := ask(t, client, req)
		if _, err := next(); err == nil {
			t.Errorf("%v succeeded", req)
		}
		end()
	}
}
