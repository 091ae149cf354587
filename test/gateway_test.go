package test

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// gatewayInfo is what GET /gateway says.
type gatewayInfo struct {
	TLSAddress   string `json:"tls_address"`
	SSHAddress   string `json:"ssh_address"`
	SSHAuthority string `json:"ssh_authority"`
	Authority    string `json:"certificate_authority"`
	Domain       string `json:"domain"`
}

// sshUser is a user who has run 'vers ssh-config'. $F is how the stock programs are told: they look for the
// configuration in the home that the password file names, and for nothing of $HOME.
func sshUser(t *testing.T) (*user, gatewayInfo) {
	t.Helper()
	u := newUser(t, shared)
	var g gatewayInfo
	u.json(`curl -sf --unix-socket `+shared.socket()+` http://vers/api/v1/gateway`, &g)
	u.run(`vers ssh-config --install && vers ssh-config --install`)
	if config := u.run(`cat ~/.ssh/config`); strings.Count(config, "Include") != 1 {
		t.Errorf("~/.ssh/config:\n%s", config)
	}
	must(t, os.WriteFile(filepath.Join(u.dir, "rc"), []byte("F=\"-F $HOME/.ssh/config -o LogLevel=ERROR -o BatchMode=yes\"\n"), 0o600))
	return u, g
}

// TestStockSSH reaches a real guest with the programs that everybody has.
func TestStockSSH(t *testing.T) {
	u, g := sshUser(t)
	u.run(`vers run --vm-alias My-Dev --wait`)
	id := u.run(`vers alias My-Dev`)
	must(t, os.WriteFile(filepath.Join(u.dir, "data"), noise(5<<19), 0o600)) // more than a window of SSH
	sum := u.run(`sha256sum <data`)
	ssh := func(script string) string { t.Helper(); return u.run(". ./rc; " + script) }

	if got := ssh(`ssh $F my-dev.vers hostname`); got != "vers-"+id[:8] {
		t.Errorf("hostname %q", got)
	}
	if r := u.try(`. ./rc; ssh $F My-Dev.vers 'cat >&2; exit 7' <<<words`); r.code != 7 || r.stderr != "words\n" {
		t.Errorf("%+v", r)
	}
	if got := ssh(`ssh $F ` + id[:8] + `.vers 'echo by the beginning of its id'`); got != "by the beginning of its id" {
		t.Error(got)
	}
	if r := u.try(`. ./rc; ssh $F nobody.vers true`); r.code != 255 || !strings.Contains(r.stderr, "VM 'nobody' not found") {
		t.Errorf("a VM that does not exist: %+v", r)
	}
	ssh(`scp -q $F data my-dev.vers:/root/scp && scp -q $F my-dev.vers:/root/scp back && cmp data back`)
	ssh(`scp -q -O $F data my-dev.vers:/root/scp-old && ssh $F my-dev.vers 'cmp /root/scp /root/scp-old'`)
	ssh(`printf 'put data /root/sftp\nget /root/sftp back\n' | sftp $F -b - my-dev.vers && cmp data back`)
	ssh(`mkdir -p tree/deep && ln -sf ../data tree/link && cp data tree/deep/ && rsync -a -e "ssh $F" tree/ my-dev.vers:/root/tree/`)
	if got := ssh(`rsync -ai -e "ssh $F" tree/ my-dev.vers:/root/tree/; ssh $F my-dev.vers 'readlink /root/tree/link; sha256sum </root/tree/deep/data'`); got != "../data\n"+sum {
		t.Errorf("after rsync: %q", got)
	}
	ssh(`ssh $F my-dev.vers 'git init -q /root/repo && cd /root/repo && echo hello >file && git add file && git -c user.name=n -c user.email=e@example.org commit -qm first'`)
	if got := ssh(`GIT_SSH_COMMAND="ssh $F" git clone -q my-dev.vers:/root/repo repo && cat repo/file`); got != "hello" {
		t.Errorf("git clone: %q", got)
	}

	// A port of the guest, here. TestAccess has -R.
	ssh(`ssh $F my-dev.vers 'cd /root && setsid python3 -m http.server 8000 --bind 127.0.0.1 >/dev/null 2>&1 </dev/null &'`)
	port := freePort(t)
	ssh(fmt.Sprintf(`ssh $F -N -L %d:localhost:8000 my-dev.vers & p=$!
		trap 'kill $p' EXIT
		curl -sf --retry 30 --retry-all-errors --retry-delay 1 http://127.0.0.1:%d/scp | cmp - data`, port, port))

	// The server's SSH port: the user name says which VM; a key of the organisation, host keys signed by the server.
	u.run(`ssh-keygen -q -t ed25519 -N '' -C laptop -f id && vers key add id.pub`)
	host, sshPort, err := net.SplitHostPort(g.SSHAddress)
	must(t, err)
	direct := `-F none -i id -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes -o HostKeyAlias=gateway.vers -o UserKnownHostsFile=$HOME/.vers/ssh_known_hosts`
	for _, name := range []string{id, "My-Dev"} {
		if got := u.run(`ssh ` + direct + ` -p ` + sshPort + ` ` + name + `@` + host + ` hostname`); got != "vers-"+id[:8] {
			t.Errorf("ssh %s@gateway: %q", name, got)
		}
	}
	// -J: the VM is the way to another SSH server; here to the gateway again, and through it to the VM.
	jump := strings.Replace(direct, "-F none", "-F jump", 1)
	must(t, os.WriteFile(filepath.Join(u.dir, "jump"), fmt.Appendf(nil, `Host vm
  HostName %s
  Port %s
  User My-Dev
  IdentityFile %s/id
  IdentitiesOnly yes
  BatchMode yes
  HostKeyAlias gateway.vers
  UserKnownHostsFile %s/.vers/ssh_known_hosts
`, host, sshPort, u.dir, u.home), 0o600))
	u.run(`. ./rc; ssh $F -N -R 2022:` + g.SSHAddress + ` my-dev.vers & p=$!
		trap 'kill $p' EXIT
		ssh $F my-dev.vers 'until python3 -c "import socket; socket.create_connection((\"127.0.0.1\", 2022))" 2>/dev/null; do sleep 0.2; done'
		[ "$(ssh ` + jump + ` -J vm -p 2022 ` + id + `@127.0.0.1 hostname)" = vers-` + id[:8] + ` ]`)
	u.run(`vers key remove laptop`)
	if r := u.try(`ssh ` + direct + ` -p ` + sshPort + ` ` + id + `@` + host + ` true`); r.code != 255 {
		t.Errorf("a key that was removed logs in: %+v", r)
	}

	// The original's way: SSH inside TLS, the server name says which VM, the VM's own key.
	u.run(`umask 077; curl -sf --unix-socket ` + shared.socket() + ` http://vers/api/v1/vm/` + id + `/ssh_key | jq -r .ssh_private_key >vmkey`)
	if got := u.run(`ssh -F none -i vmkey -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
		-o ProxyCommand="openssl s_client -connect ` + g.TLSAddress + ` -servername %h -quiet -verify_quiet 2>/dev/null" root@` + id + `.vm.vers.sh hostname`); got != "vers-"+id[:8] {
		t.Errorf("SSH in TLS: %q", got)
	}
	u.run(`vers pause My-Dev`)
	if got := ssh(`ssh $F my-dev.vers 'echo awake' 2>/dev/null`); got != "awake" {
		t.Errorf("a paused VM: %q", got)
	}
}

// TestIngress reaches web servers of a guest by name, with the certificates of the server's authority.
func TestIngress(t *testing.T) {
	u, g := sshUser(t)
	u.run(`vers run --vm-alias web --wait`)
	id := u.run(`vers alias web`)
	must(t, os.WriteFile(filepath.Join(u.dir, "ca.pem"), []byte(g.Authority), 0o600))
	_, port, err := net.SplitHostPort(g.TLSAddress)
	must(t, err)
	get := func(url string, options ...string) result {
		return u.try(`curl -sS --cacert ca.pem --connect-to ::` + g.TLSAddress + ` -w '\n%{http_code}' ` + strings.Join(options, " ") + ` '` + url + `'`)
	}
	expect := func(url, want string, options ...string) {
		t.Helper()
		if r := get(url, options...); r.code != 0 || r.stdout != want {
			t.Errorf("%s %v: %+v, want %q", url, options, r, want)
		}
	}
	u.run(`vers exec web 'mkdir -p /srv/www && cd /srv/www && echo hello >file && setsid python3 -m http.server 3000 >/dev/null 2>&1 </dev/null &
		until curl -sf http://127.0.0.1:3000/file; do sleep 0.2; done'`)
	url := u.run(`vers open web 3000`)
	if want := "https://3000-" + id + ".vm.localhost:" + port + "/"; url != want {
		t.Errorf("vers open says %s, want %s", url, want)
	}
	expect(url+"file", "hello\n\n200")
	if r := get("https://4000-" + id + ".vm.localhost/"); !strings.HasSuffix(r.stdout, "\n502") || !strings.Contains(r.stdout, "port 4000") {
		t.Errorf("a port without a server: %+v", r)
	}
	u.run(`vers sleep web`)
	expect(url+"file", "hello\n\n200") // it wakes
	u.run(`vers domain create App.Example.org web --port 3000`)
	expect("https://app.example.org/file", "vers: app.example.org is private: send an API key of its organisation (Authorization: Bearer …), or open the link that 'vers open' prints\n\n401")
	key := shared.newKey(t, "default")
	expect("https://app.example.org/file", "hello\n\n200", "-H 'Authorization: Bearer "+key+"'")
	link := u.run(`vers open web --domain app.example.org -q 2>/dev/null || vers open web --domain app.example.org`)
	expect(strings.Replace(link, "/?", "/file?", 1), "hello\n\n200", "-L -c cookies -b cookies")
	u.run(`vers domain delete app.example.org && vers domain create app.example.org web --port 3000 --public`)
	expect("https://app.example.org/file", "hello\n\n200")
	if got := u.run(`vers domain list -q`); got != "app.example.org" {
		t.Errorf("domains: %q", got)
	}
	// The API, by its name.
	if r := get("https://api.localhost/api/v1/whoami", "-H 'Authorization: Bearer "+key+"'"); !strings.Contains(r.stdout, `"org_name":"default"`) {
		t.Errorf("the API by its name: %+v", r)
	}
	u.run(`vers kill web --yes`)
	if r := get("https://app.example.org/file"); r.code == 0 {
		t.Errorf("the name of a VM that is gone: %+v", r)
	}
}

// noise is data that cannot be compressed or guessed, always the same.
func noise(n int) []byte {
	data := make([]byte, 0, n+sha256.Size)
	block := sha256.Sum256([]byte("noise"))
	for len(data) < n {
		block = sha256.Sum256(block[:])
		data = append(data, block[:]...)
	}
	return data[:n]
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
