package test

import (
	"image/png"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// page is a web server in a guest with a page that speaks to it over a WebSocket. The page is loaded when it has shown the
// answer: its picture is held back until then.
const page = `
import base64, hashlib, http.server, socketserver, threading
shown = threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.echo()
        path, _, query = self.path.partition("?")
        if path == "/shown":
            open("/srv/shown", "w").write(query)
            shown.set()
        if path == "/wait":
            shown.wait()
        body = PAGE if path == "/" else b""
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def echo(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        head = self.rfile.read(2)
        mask = self.rfile.read(4)
        text = bytes(c ^ mask[i % 4] for i, c in enumerate(self.rfile.read(head[1] & 127)))
        answer = b"the VM heard: " + text
        self.wfile.write(bytes([0x81, len(answer)]) + answer)
        self.rfile.read(1)
        self.close_connection = True
    def log_message(self, *args): pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
PAGE = b"""<!doctype html><title>vers</title><body style="font: 40px sans-serif; background: #123; color: #fff">
<h1 id="h">waiting</h1><img src="/wait" alt="">
<script>
const ws = new WebSocket("wss://" + location.host + "/ws")
ws.onopen = () => ws.send("hello from a browser")
ws.onmessage = e => {
  document.getElementById("h").textContent = e.data
  fetch("/shown?" + encodeURIComponent(e.data))
}
</script>"""
Server(("", 3000), Handler).serve_forever()
`

// TestBrowser opens a page that a guest serves, by its private name and with the link that opens it, in a browser that
// trusts the server's authority. The picture stays in .cache/artifacts/browser.png.
func TestBrowser(t *testing.T) {
	u, g := sshUser(t)
	must(t, os.WriteFile(filepath.Join(u.dir, "ca.pem"), []byte(g.Authority), 0o600))
	must(t, os.WriteFile(filepath.Join(u.dir, "page.py"), []byte(page), 0o600))
	u.run(`vers run --vm-alias web --wait && vers copy web page.py :/srv/page.py`)
	u.run(`vers exec web 'setsid python3 /srv/page.py >/dev/null 2>&1 </dev/null &
		until curl -sf http://127.0.0.1:3000/ >/dev/null; do sleep 0.2; done'`)
	u.run(`vers domain create app.example.org web --port 3000`)
	link := u.run(`vers open web --domain app.example.org`)
	host, _, err := net.SplitHostPort(g.TLSAddress)
	must(t, err)
	picture, err := filepath.Abs("../.cache/artifacts/browser.png")
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(picture), 0o755))
	must(t, removeFile(picture))
	u.run(`mkdir -p ~/.pki/nssdb && certutil -d sql:$HOME/.pki/nssdb -N --empty-password && certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n vers -i ca.pem`)
	// Without its own sandbox it can run as root.
	r := u.try(`timeout 180 chromium --headless=new --no-sandbox --disable-gpu --user-data-dir=$HOME/chromium --window-size=800,400 \
		--host-resolver-rules="MAP app.example.org ` + host + `" --screenshot='` + picture + `' '` + link + `'`)
	if got := u.run(`vers exec web 'cat /srv/shown'`); got != "the%20VM%20heard%3A%20hello%20from%20a%20browser" {
		t.Fatalf("the page shows %q; the browser: %+v", got, r)
	}
	file, err := os.Open(picture)
	must(t, err)
	defer file.Close()
	if config, err := png.DecodeConfig(file); err != nil || config.Width != 800 || config.Height == 0 {
		t.Errorf("picture of %d×%d, %v; the browser says %s", config.Width, config.Height, err, strings.TrimSpace(r.stderr))
	}
}

// removeFile removes a file that need not be there.
func removeFile(path string) error {
	err := os.Remove(path)
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
