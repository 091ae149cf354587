package agent

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// login opens an SSH connection as a user's client would.
func (r *rig) login() *ssh.Client {
	r.t.Helper()
	id, key := newIdentity(r.t, "ssh")
	_, err := r.client.Renew(r.t.Context(), id)
	must(r.t, err)
	conn, err := r.client.SSH(r.t.Context())
	must(r.t, err)
	signer, err := ssh.ParsePrivateKey([]byte(key))
	must(r.t, err)
	hostKey, err := ssh.ParsePrivateKey([]byte(id.SSHHostKey))
	must(r.t, err)
	c, channels, requests, err := ssh.NewClientConn(conn, "vm", &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(hostKey.PublicKey()),
	})
	must(r.t, err)
	client := ssh.NewClient(c, channels, requests)
	r.t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestSSHExec(t *testing.T) {
	client := newRig(t).login()
	session, err := client.NewSession()
	must(t, err)
	var stdout, stderr bytes.Buffer
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	session.Stdin, session.Stdout, session.Stderr = bytes.NewReader(big), &stdout, &stderr
	err = session.Run("cat; echo $GREETING >&2; exit 9")
	var exit *ssh.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 9 {
		t.Errorf("error %v", err)
	}
	if !bytes.Equal(stdout.Bytes(), big) || stderr.String() != "hello world\n" {
		t.Errorf("%d of %d bytes, stderr %q", stdout.Len(), len(big), stderr.String())
	}

	session, err = client.NewSession()
	must(t, err)
	err = session.Run("kill -TERM $$")
	if !errors.As(err, &exit) || exit.Signal() != "TERM" {
		t.Errorf("death by signal: %v", err)
	}

	session, err = client.NewSession()
	must(t, err)
	must(t, session.Start("exec sleep 100"))
	must(t, session.Signal(ssh.SIGKILL))
	if err := session.Wait(); !errors.As(err, &exit) || exit.Signal() != "KILL" {
		t.Errorf("signal from the client: %v", err)
	}
	if _, _, err := client.SendRequest("keepalive@openssh.com", true, nil); err != nil {
		t.Errorf("keepalive: %v", err)
	}
}

func TestSSHShell(t *testing.T) {
	client := newRig(t).login()
	session, err := client.NewSession()
	must(t, err)
	must(t, session.RequestPty("vt100", 24, 80, ssh.TerminalModes{ssh.ECHO: 1}))
	in, err := session.StdinPipe()
	must(t, err)
	var out bytes.Buffer
	session.Stdout = &out
	must(t, session.Shell())
	must(t, session.WindowChange(30, 99))
	_, err = io.WriteString(in, "stty size; echo term-$TERM; exit 4\n")
	must(t, err)
	var exit *ssh.ExitError
	if err := session.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 4 {
		t.Errorf("exit: %v", err)
	}
	if !strings.Contains(out.String(), "30 99\r\n") || !strings.Contains(out.String(), "term-vt100\r\n") {
		t.Errorf("output %q", out.String())
	}
}

// A client that vanishes takes its terminal along, whatever runs there and says nothing.
func TestSSHShellHangsUp(t *testing.T) {
	r := newRig(t)
	client := r.login()
	session, err := client.NewSession()
	must(t, err)
	must(t, session.RequestPty("vt100", 24, 80, ssh.TerminalModes{ssh.ECHO: 0}))
	in, err := session.StdinPipe()
	must(t, err)
	out, err := session.StdoutPipe()
	must(t, err)
	must(t, session.Shell())
	must(t, session.WindowChange(30, 99))
	// The interactive shell is gone by then: bash loses a hang-up that comes just before it becomes another program.
	_, err = io.WriteString(in, "exec sh -c 'echo be\"\"gun; exec sleep 1000'\n")
	must(t, err)
	for seen := ""; !strings.Contains(seen, "begun\r\n"); {
		buf := make([]byte, 1024)
		n, err := out.Read(buf)
		must(t, err)
		seen += string(buf[:n])
	}
	must(t, client.Close())
	ended := make(chan struct{})
	go func() {
		r.server.background.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the program goes on without its terminal")
	}
}

func TestSSHFilesAndForwarding(t *testing.T) {
	r := newRig(t)
	client := r.login()
	files, err := sftp.NewClient(client)
	must(t, err)
	path := filepath.Join(r.root, "a/b")
	must(t, files.MkdirAll(path))
	f, err := files.Create(path + "/f")
	must(t, err)
	_, err = f.Write([]byte("over sftp"))
	must(t, err)
	must(t, f.Close())
	must(t, files.Chmod(path+"/f", 0o600))
	if got := r.read("a/b/f"); got != "over sftp" {
		t.Errorf("file %q", got)
	}
	must(t, files.Close())

	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	go echo(l)
	conn, err := client.Dial("tcp", l.Addr().String())
	must(t, err)
	_, err = conn.Write([]byte("through"))
	must(t, err)
	buf := make([]byte, 7)
	_, err = io.ReadFull(conn, buf)
	must(t, err)
	if string(buf) != "through" {
		t.Errorf("got %q", buf)
	}
	must(t, conn.Close())
	must(t, l.Close())
	if _, err := client.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("connected although nobody listens")
	}
}

func TestSSHRefusesOthers(t *testing.T) {
	r := newRig(t)
	id, good := newIdentity(t, "ssh")
	_, err := r.client.Renew(t.Context(), id)
	must(t, err)
	bad, _ := keyPair(t)
	for name, c := range map[string]struct{ user, key string }{"another key": {"root", bad}, "another user": {"daemon", good}} {
		conn, err := r.client.SSH(t.Context())
		must(t, err)
		signer, err := ssh.ParsePrivateKey([]byte(c.key))
		must(t, err)
		_, _, _, err = ssh.NewClientConn(conn, "vm", &ssh.ClientConfig{
			User: c.user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
		})
		if err == nil {
			t.Errorf("%s came in", name)
		}
		_ = conn.Close()
	}
}

// stock gives the options that let OpenSSH's programs log in to the agent, through a listener that hands every connection
// to it.
func (r *rig) stock() []string {
	t := r.t
	t.Helper()
	for _, program := range []string{"ssh", "sftp", "ssh-agent", "ssh-add"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("no %s on this machine", program)
		}
	}
	id, key := newIdentity(t, "ssh")
	_, err := r.client.Renew(t.Context(), id)
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			inner, err := r.client.SSH(t.Context())
			if err != nil {
				_ = conn.Close()
				return
			}
			go splice(conn.(*net.TCPConn), inner, nil)
		}
	}()
	keyFile := filepath.Join(r.root, "key")
	must(t, os.WriteFile(keyFile, []byte(key), 0o600))
	_, port, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	return []string{"-F", "none", "-i", keyFile, "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "Port=" + port}
}

// TestStockClients runs OpenSSH's ssh and sftp against the agent.
func TestStockClients(t *testing.T) {
	r := newRig(t)
	options := r.stock()

	cmd := exec.CommandContext(t.Context(), "ssh", append(options, "root@127.0.0.1", "cat; echo err >&2; exit 6")...)
	cmd.Stdin = strings.NewReader("to the guest")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if string(out) != "to the guest" || stderr.String() != "err\n" || !errors.As(err, &exit) || exit.ExitCode() != 6 {
		t.Errorf("ssh: %q, %q, %v", out, stderr.String(), err)
	}

	must(t, os.WriteFile(filepath.Join(r.root, "local"), bytes.Repeat([]byte("data"), 100_000), 0o644))
	cmd = exec.CommandContext(t.Context(), "sftp", append(options, "-b", "-", "root@127.0.0.1")...)
	cmd.Stdin = strings.NewReader("put " + r.root + "/local " + r.root + "/remote\nget " + r.root + "/remote " + r.root + "/back\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sftp: %v: %s", err, out)
	}
	if r.read("back") != r.read("local") {
		t.Error("the file came back different")
	}

	for _, protocol := range []string{"-s", "-O"} { // SFTP, and the old one
		cmd = exec.CommandContext(t.Context(), "scp", append(options, protocol, filepath.Join(r.root, "local"), "root@127.0.0.1:"+r.root+"/scp"+protocol)...)
		if out, err := cmd.CombinedOutput(); err != nil || r.read("scp"+protocol) != r.read("local") {
			t.Errorf("scp %s: %v: %s", protocol, err, out)
		}
	}

	cmd = exec.CommandContext(t.Context(), "ssh", append(options, "-tt", "root@127.0.0.1", "tty && stty -echo && cat")...)
	cmd.Stdin = strings.NewReader("typed\n\x04")
	if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), "/dev/pts/") || !strings.Contains(string(out), "typed\r\n") {
		t.Errorf("ssh -tt: %q, %v", out, err)
	}
}

// An image can want no SSH (guest.ssh = false of build scripts).
func TestNoSSH(t *testing.T) {
	r := newRig(t)
	id, _ := newIdentity(t, "ssh")
	_, err := r.client.Renew(t.Context(), id)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(r.root, "etc/vers"), 0o755))
	must(t, os.WriteFile(filepath.Join(r.root, noSSH), nil, 0o644))
	if conn, err := r.client.SSH(t.Context()); err == nil || !strings.Contains(err.Error(), "allows no SSH") {
		t.Errorf("a connection %v, error %v", conn, err)
	}
}
