package test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vers/api"
)

// echoService lets a guest echo what comes to a port.
const echoService = `cat > /root/echo.pl <<'END'
use IO::Socket::INET;
$SIG{CHLD} = 'IGNORE';
my $s = IO::Socket::INET->new(Listen => 128, LocalAddr => '127.0.0.1', LocalPort => 7000, ReuseAddr => 1) or die $!;
open(my $ready, '>', '/root/ready'); close $ready;
while (my $c = $s->accept) {
  if (!fork) { while (sysread($c, my $b, 65536)) { my $at = 0; while ($at < length $b) { $at += syswrite($c, $b, length($b) - $at, $at) } } exit }
  close $c;
}
END
setsid perl /root/echo.pl >/dev/null 2>&1 </dev/null &
until [ -e /root/ready ]; do sleep 0.1; done`

// TestAccess reaches one real guest in all ways that need no gateway: stock ssh, copies, tunnels, signals.
func TestAccess(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	u := newUser(t, s)
	u.run(`vers run --vm-alias dev --mem-size 512 --wait`)
	must(t, os.WriteFile(filepath.Join(u.dir, "echo"), []byte(echoService), 0o600))
	u.run(`vers exec dev "$(cat echo)"`)
	t.Run("stock ssh", func(t *testing.T) { stockSSH(t, u) })
	t.Run("copy", func(t *testing.T) { copyBothWays(t, u) })
	t.Run("copy goes on", func(t *testing.T) { copyGoesOn(t, u) })
	t.Run("tunnel", func(t *testing.T) { tunnels(t, u) })
	t.Run("interrupt", func(t *testing.T) {
		done := u.background(`vers exec dev 'echo begun; trap "echo told > /root/told; exit 9" INT; while :; do sleep 0.1; done'`)
		done.expect("begun")
		must(t, done.cmd.Process.Signal(os.Interrupt))
		if code := done.wait(); code != 9 || u.run("vers exec dev cat /root/told") != "told" {
			t.Errorf("exit code %d", code)
		}
	})
}

// program is a command line that runs beside the test, without a shell around it.
type program struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *program) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(data)
}

func (p *program) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// background starts a program of the user's; it ends with the test.
func (u *user) background(line string, env ...string) *program {
	u.t.Helper()
	p := &program{t: u.t, cmd: exec.Command("bash", "-c", "exec "+line), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env = u.dir, append(u.env(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	must(u.t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	u.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

// expect waits for text in the output and gives what follows in its line.
func (p *program) expect(text string) string {
	p.t.Helper()
	var rest string
	eventually(p.t, "the output of "+p.cmd.String(), func() error {
		_, after, found := strings.Cut(p.output(), text)
		if !found || !strings.Contains(after, "\n") {
			return fmt.Errorf("no %q in %q", text, p.output())
		}
		rest, _, _ = strings.Cut(after, "\n")
		return nil
	})
	return rest
}

func (p *program) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// wait gives the exit code.
func (p *program) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(2 * time.Minute):
		p.t.Fatalf("%s does not end: %s", p.cmd, p.output())
		return 0
	}
}

// sshOptions makes stock ssh reach the VM by a local port, where every connection is handed to the guest.
func (u *user) sshOptions(t *testing.T) string {
	t.Helper()
	client, err := api.NewClient(u.url, api.WithKey(u.key))
	must(t, err)
	id := u.run(`vers alias dev`)
	key, err := client.SSHKey(t.Context(), id)
	must(t, err)
	keyFile, known := filepath.Join(u.dir, "key"), filepath.Join(u.dir, "known")
	must(t, os.WriteFile(keyFile, []byte(key.PrivateKey), 0o600))
	must(t, os.WriteFile(known, []byte("dev "+key.HostKey+"\n"), 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				inner, err := client.SSH(context.Background(), id)
				if err != nil {
					return
				}
				defer inner.Close()
				go func() {
					_, _ = io.Copy(inner, conn)
					inner.Close()
				}()
				_, _ = io.Copy(conn, inner)
			}()
		}
	}()
	return fmt.Sprintf("-F none -i %s -o IdentitiesOnly=yes -o UserKnownHostsFile=%s -o HostKeyAlias=dev -o StrictHostKeyChecking=yes "+
		"-o BatchMode=yes -o ExitOnForwardFailure=yes -p %d root@127.0.0.1", keyFile, known, l.Addr().(*net.TCPAddr).Port)
}

// stockSSH: -R and -A of OpenSSH. TestStockSSH has -L.
func stockSSH(t *testing.T, u *user) {
	options := u.sshOptions(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "from outside\n")
			conn.Close()
		}
	}()
	back := u.background(fmt.Sprintf("ssh -N -R 0:127.0.0.1:%d %s", l.Addr().(*net.TCPAddr).Port, options))
	allocated := strings.Fields(back.expect("Allocated port "))[0]
	if got := u.run("vers exec dev bash -c 'read -r line < /dev/tcp/127.0.0.1/" + allocated + "; echo \"$line\"'"); got != "from outside" {
		t.Errorf("ssh -R: %q", got)
	}
	if r := u.try("vers exec dev bash -c ': < /dev/tcp/'$(vers exec dev hostname -I | cut -d' ' -f1)'/" + allocated + "'"); r.code == 0 {
		t.Error("ssh -R is reached from elsewhere than the guest")
	}

	socket := filepath.Join(t.TempDir(), "agent")
	u.background("ssh-agent -D -a " + socket)
	eventually(t, "ssh-agent", func() error { _, err := os.Stat(socket); return err })
	u.run("SSH_AUTH_SOCK=" + socket + " ssh-add -q key")
	got := strings.Fields(u.run("SSH_AUTH_SOCK=" + socket + " ssh -A " + options + ` 'echo $SSH_AUTH_SOCK; ssh-add -L'`))
	if key := strings.Fields(u.run("ssh-keygen -y -f key")); len(got) < 3 || got[2] != key[1] {
		t.Fatalf("ssh -A: %q, the key is %q", got, key)
	}
	eventually(t, "the end of the agent's socket", func() error {
		if r := u.try("vers exec dev test -e " + got[0]); r.code == 0 {
			return errors.New("it is there")
		}
		return nil
	})
}

// echoed sends data to an echo and compares what comes back.
func echoed(port int, data []byte) error {
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	go func() {
		_, _ = conn.Write(data)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	back, err := io.ReadAll(conn)
	if err == nil && !bytes.Equal(back, data) {
		err = fmt.Errorf("%d bytes came back of %d, or others", len(back), len(data))
	}
	return err
}

// copyBothWays: a folder with odd names, and a file of several blocks, into the guest and out of it.
func copyBothWays(t *testing.T, u *user) {
	u.run(`mkdir -p tree/sub/deep 'tree/a b' && printf x > $'tree/new\nline' && printf y > $'tree/\xff\xfe' && printf z > tree/-rf && printf '' > "tree/a b/empty"
ln -s ../nowhere tree/sub/link && echo '#!/bin/sh' > tree/sub/deep/tool && chmod 4751 tree/sub/deep/tool && chmod 700 tree/sub
head -c 13000001 /dev/urandom > tree/large && touch -d 2001-02-03T04:05:06Z tree/large tree/sub/deep`)
	u.run("vers copy -r dev tree :/srv/tree && vers copy -r dev :/srv/tree back")
	// Everything but the times of links, which SFTP cannot set.
	must(t, os.WriteFile(filepath.Join(u.dir, "describe"), []byte(`find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum
find . -mindepth 1 ! -type l -printf '%p %y %m %Ts\n' -o -type l -printf '%p %l\n' | LC_ALL=C sort`), 0o600))
	want := u.run(`cd tree && sh ../describe`)
	if got := u.run(`vers exec -w /srv/tree dev "$(cat describe)"`); got != want {
		t.Errorf("the guest has\n%s\nwhich is not\n%s", got, want)
	}
	if got := u.run(`stat -c %a back/sub/deep/tool && chmod 4751 back/sub/deep/tool && cd back && sh ../describe`); got != "751\n"+want {
		t.Errorf("back came\n%s\nwhich is not\n%s", got, want)
	}
	if owner := u.run("vers exec dev stat -c %u:%g /srv/tree/large"); owner != "0:0" {
		t.Errorf("owner %s", owner)
	}
	data, err := os.ReadFile("../docs/access.md")
	must(t, err)
	curl := regexp.MustCompile("(?s)```sh\n(curl -sf [^`]*files/content[^`]*)```").FindStringSubmatch(string(data))
	if curl == nil {
		t.Fatal("docs/access.md does not show how to copy without vers")
	}
	web := *u
	web.onHTTP()
	web.run("set -e; head -c 100000 /dev/urandom > dump.sql; VM=$(vers info dev --json | jq -r .vm_id)\n" + curl[1] + "tail -c +1001 dump.sql | cmp - rest.sql")
	u.run("vers exec dev chown 33:33 /srv/tree/-rf && vers copy tree/-rf dev:/srv/tree/-rf && vers copy dev:/srv/tree/-rf again && cmp tree/-rf again")
	if owner := u.run("vers exec dev stat -c %u:%g -- /srv/tree/-rf"); owner != "33:33" {
		t.Errorf("owner of a replaced file: %s", owner)
	}
}

// copyGoesOn: a copy that is interrupted is taken up by the next, and what versd's restart cuts by the same program.
func copyGoesOn(t *testing.T, u *user) {
	grown := func(bytes int) {
		u.run(fmt.Sprintf(`vers exec dev perl -e '{ my ($f) = (glob("/srv/.vers-*.part"), "/srv/huge"); last if (-s $f // 0) >= %d; select undef, undef, undef, 0.02; redo }'`, bytes))
	}
	var p *program
	size := 128 << 20
	for tries := 0; ; tries, size = tries+1, size*2 {
		u.run(fmt.Sprintf("head -c %d /dev/urandom > huge; vers exec dev rm -f /srv/huge", size))
		p = u.background("vers copy dev huge :/srv/huge")
		grown(5 << 20) // so that a block of 4 MiB can be kept
		must(t, p.cmd.Process.Signal(os.Interrupt))
		interrupted := p.wait()
		if interrupted == 130 {
			if r := u.try("vers exec dev test -e /srv/huge"); r.code == 0 {
				t.Fatal("half a file is there")
			}
			p = u.background("vers copy --json dev huge :/srv/huge")
			grown(13 << 20)
			u.server.stop()
			ended := p.ended()
			must(t, u.server.start())
			if !ended {
				break
			}
		}
		if code := p.wait(); code != 0 || tries == 3 { // 0: a quick machine
			t.Fatalf("exit code %d: %s", code, p.output())
		}
	}
	if code := p.wait(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.output())
	}
	var result struct {
		Kept int64 `json:"kept_bytes"`
	}
	_, document, _ := strings.Cut(p.output(), "{")
	must(t, json.Unmarshal([]byte("{"+document), &result))
	want := strings.Fields(u.run("sha256sum huge"))[0]
	if got := strings.Fields(u.run("vers exec dev sha256sum /srv/huge"))[0]; got != want || result.Kept < 12<<20 {
		t.Errorf("kept %d; %s, want %s", result.Kept, got, want)
	}
	if left := u.run("vers exec dev 'ls -A /srv | grep vers || true'"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// tunnels: a hundred connections at once, a restart of versd, and the way back.
func tunnels(t *testing.T, u *user) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "from outside\n")
			conn.Close()
		}
	}()
	p := u.background(fmt.Sprintf("vers tunnel dev 0:7000 -R 7001:%d", l.Addr().(*net.TCPAddr).Port))
	port, err := strconv.Atoi(strings.Fields(p.expect("Forwarding 127.0.0.1:"))[0])
	must(t, err)
	p.expect("Press Ctrl-C")
	crowd := func() {
		data := make([]byte, 64<<10)
		_, _ = rand.Read(data)
		var all, open sync.WaitGroup
		open.Add(100)
		for range 100 {
			all.Go(func() {
				conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
				if err == nil {
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
					if _, err = conn.Write(data[:1]); err == nil {
						_, err = io.ReadFull(conn, make([]byte, 1))
					}
				}
				open.Done()
				open.Wait()
				if err != nil {
					t.Error(err)
					return
				}
				go func() {
					_, _ = conn.Write(data)
					_ = conn.(*net.TCPConn).CloseWrite()
				}()
				if back, err := io.ReadAll(conn); err != nil || !bytes.Equal(back, data) {
					t.Errorf("%d bytes, %v", len(back), err)
				}
			})
		}
		all.Wait()
	}
	reverse := func() error {
		r := u.try("vers exec dev bash -c 'read -r line < /dev/tcp/127.0.0.1/7001; echo \"$line\"'")
		if r.stdout != "from outside\n" {
			return fmt.Errorf("%q %s", r.stdout, r.stderr)
		}
		return nil
	}
	crowd()
	must(t, reverse())
	u.server.kill()
	must(t, u.server.start())
	eventually(t, "the tunnel after a restart of versd", func() error { return echoed(port, []byte("again")) })
	eventually(t, "the way back after a restart of versd", reverse)
	u.run("vers pause dev && vers resume dev")
	must(t, echoed(port, []byte("after a pause")))
	must(t, p.cmd.Process.Signal(os.Interrupt))
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, p.output())
	}
}
