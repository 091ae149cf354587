package test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vers/api"
	"vers/internal/cli/session"
)

// project writes the files of a folder.
func (u *user) project(files map[string]string) {
	u.t.Helper()
	for name, text := range files {
		path := filepath.Join(u.dir, name)
		must(u.t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(u.t, os.WriteFile(path, []byte(text), 0o644))
	}
}

// busybox writes base.tar.gz: a root file system with a shell, and what programs of this machine it is to have besides.
func (u *user) busybox(programs ...string) {
	u.t.Helper()
	dir := u.t.TempDir()
	u.run(fmt.Sprintf(`set -e; cd %[1]s; mkdir -p bin etc tmp; cp "$(command -v busybox)" bin/busybox
for a in $(bin/busybox --list); do [ $a = busybox ] || ln -sf busybox bin/$a; done
printf 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n' > etc/passwd; printf 'root:x:0:\napp:x:1000:\n' > etc/group`, dir))
	for _, program := range programs {
		u.run(fmt.Sprintf(`set -e; cd %[1]s; cp -L "$(command -v %[2]s)" bin/
for lib in $(ldd "$(command -v %[2]s)" | grep -o '/[^ ]*'); do mkdir -p ".$(dirname $lib)"; cp -L $lib ".$lib"; done`, dir, program))
	}
	u.run("tar -C " + dir + " -czf base.tar.gz .")
}

// get asks the server in a VM for a page, through the guest's network.
func (u *user) get(vm string, port int) string {
	u.t.Helper()
	client, err := api.NewClient(u.url, api.WithKey(u.key))
	must(u.t, err)
	ctx, cancel := context.WithTimeout(u.t.Context(), time.Minute)
	defer cancel()
	conn, err := session.Dial(ctx, client, vm)
	must(u.t, err)
	defer conn.Close()
	web := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return conn.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	}}}
	defer web.CloseIdleConnections()
	page := ""
	eventually(u.t, "an answer of the application", func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://app/", nil)
		must(u.t, err)
		resp, err := web.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		page = string(data)
		return err
	})
	return page
}

// toolchain packs the Go that runs this test, as far as builds need it.
func toolchain(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	must(t, err)
	packed, err := gzip.NewWriterLevel(file, gzip.BestSpeed)
	must(t, err)
	archive := tar.NewWriter(packed)
	root := strings.TrimSpace(sh(t, "go env GOROOT"))
	for _, part := range []string{"VERSION", "go.env", "bin/go", "pkg/tool", "pkg/include", "src"} {
		must(t, filepath.WalkDir(filepath.Join(root, part), func(name string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == "testdata" {
				return filepath.SkipDir
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil || !info.Mode().IsRegular() || strings.HasSuffix(name, "_test.go") {
				return err
			}
			h, err := tar.FileInfoHeader(info, "")
			if err != nil {
				return err
			}
			h.Name = "go" + strings.TrimPrefix(name, root)
			if err := archive.WriteHeader(h); err != nil {
				return err
			}
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(archive, f)
			return err
		}))
	}
	must(t, errors.Join(archive.Close(), packed.Close(), file.Close()))
}

// A Go program is compiled in one stage and runs alone in the next; the machine of it serves HTTP as its Dockerfile says, and
// so does everything made of that machine.
func TestBuildGoApplication(t *testing.T) {
	u := newUser(t, shared)
	u.busybox()
	toolchain(t, filepath.Join(u.dir, "go.tar.gz"))
	u.project(map[string]string{
		"vers.toml": "[rootfs]\nname = \"goapp\"\n",
		"go.mod":    "module app\n\ngo 1.24\n",
		"main.go": `package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	fmt.Println("listening on", os.Getenv("PORT"))
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		dir, _ := os.Getwd()
		fmt.Fprintf(w, "%s in %s as %d", os.Getenv("GREETING"), dir, os.Getuid())
	})
	panic(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
}
`,
		"Dockerfile": `FROM scratch AS base
ADD base.tar.gz /
FROM base AS build
ADD go.tar.gz /usr/local/
ENV PATH=/usr/local/go/bin:/bin CGO_ENABLED=0 GOTOOLCHAIN=local HOME=/tmp
WORKDIR /src
COPY go.mod main.go ./
RUN go build -o /out/app .
FROM base
COPY --from=build /out/app /bin/app
ENV PORT=8080 GREETING=compliments
EXPOSE 8080
USER app
WORKDIR /srv
ENTRYPOINT ["app"]
`})
	var vm struct {
		VMID string `json:"vm_id"`
	}
	u.json("vers up --start --wait --vm-alias web --format json", &vm)
	const page = "compliments in /srv as 1000"
	if got := u.get(vm.VMID, 8080); got != page {
		t.Errorf("the application says %q", got)
	}
	if got := u.run("vers logs web"); got != "listening on 8080" {
		t.Errorf("its log: %q", got)
	}
	if got := u.run(`vers exec web 'echo $GREETING; pwd; id -un; test ! -e /usr/local/go'`); got != "compliments\n/srv\napp" {
		t.Errorf("a command: %q", got)
	}
	// The process goes on in a branch, and in a machine of a commit.
	var branch struct {
		NewID string `json:"new_id"`
	}
	u.json("vers branch web --format json", &branch)
	if got := u.get(branch.NewID, 8080); got != page {
		t.Errorf("in a branch it says %q", got)
	}
	commit := u.run("vers commit web --format json | jq -r .commit_id")
	u.run("vers kill -y web " + branch.NewID)
	u.json("vers run-commit "+commit+" --wait --format json", &vm)
	if got := u.get(vm.VMID, 8080); got != page {
		t.Errorf("in a machine of the commit it says %q", got)
	}
	if got := u.run("vers exec pwd"); got != "/srv" {
		t.Errorf("a command there: %q", got)
	}
	// Nothing has changed: nothing is written. The image is in use.
	if again := u.try("vers build"); again.code != 0 || !strings.Contains(again.stderr, "Nothing has changed") {
		t.Errorf("again: %+v", again)
	}
	if r := u.try("vers rootfs delete -f goapp"); r.code != 4 || !strings.Contains(r.stderr, "in use") {
		t.Errorf("deleted while in use: %+v", r)
	}
	u.run("vers kill -y " + vm.VMID + " && vers rootfs delete -f goapp")
}

// A Node application in two stages: a build step writes what the other runs.
func TestBuildNodeApplication(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("node is not installed here, and no registry of images can be reached")
	}
	u := newUser(t, shared)
	u.busybox("node")
	u.project(map[string]string{
		".dockerignore": "ignored\n",
		"ignored":       "x",
		".env.build":    "hello",
		"server.js": `require('http').createServer((q, r) => r.end(require('./built.json').text + ' ' + process.env.NODE_ENV + ' ' + process.cwd()))
  .listen(3000, () => console.log('ready'))`,
		"docker/Dockerfile": `FROM scratch AS base
ADD base.tar.gz /
FROM base AS build
WORKDIR /src
COPY . .
RUN test ! -e ignored && node -e "fs.writeFileSync('built.json', JSON.stringify({text: fs.readFileSync('.env.build', 'utf8')}))"
FROM base
WORKDIR /app
COPY --from=build /src/server.js /src/built.json ./
ENV NODE_ENV=production
CMD ["node", "server.js"]
`})
	u.run("vers build --rootfs nodeapp --dockerfile docker/Dockerfile")
	var vm struct {
		VMID string `json:"vm_id"`
	}
	u.json("vers run --rootfs nodeapp --start --wait --format json", &vm)
	if got := u.get(vm.VMID, 3000); got != "hello production /app" {
		t.Errorf("the application says %q", got)
	}
	u.run("vers kill -y && vers rootfs delete -f nodeapp")
}

// Interrupting the client, or killing versd, in the middle of a build leaves nothing, and the next build works.
func TestInterruptedBuild(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	u := newUser(t, s)
	u.busybox()
	u.project(map[string]string{"vers.toml": "[rootfs]\nname = \"slow\"\n", "Dockerfile": "FROM scratch\nADD base.tar.gz /\nRUN echo going; sleep 4000\n"})
	nothing := func() {
		t.Helper()
		eventually(t, "nothing of the build is left", func() error {
			builds, err := os.ReadDir(filepath.Join(s.data(), "builds"))
			if err != nil || len(builds) > 0 {
				return fmt.Errorf("%d builds, %w", len(builds), err)
			}
			running, err := os.ReadDir(filepath.Join(s.data(), "builder", "run"))
			if err != nil || len(running) > 0 {
				return fmt.Errorf("%d runs of the engine, %w", len(running), err)
			}
			if out, err := exec.Command("pgrep", "-f", "sleep 4000").Output(); err == nil {
				return fmt.Errorf("steps go on: %s", out)
			}
			return nil
		})
	}
	// The shell waits for the step's output, then does what is given.
	during := func(what string) result {
		return u.try(`vers build 2> log & build=$!
for i in $(seq 600); do grep -q '^going' log && break; sleep 0.1; done
` + what + `; wait $build; code=$?; cat log; exit $code`)
	}
	if r := during("kill -INT $build"); r.code != 130 {
		t.Errorf("interrupted: %+v", r)
	}
	nothing()
	if r := during(fmt.Sprintf("kill -KILL %d", s.cmd.Process.Pid)); r.code == 0 || !strings.Contains(r.stdout, "broke") {
		t.Errorf("versd killed: %+v", r)
	}
	<-s.exited
	must(t, s.start())
	nothing()
	if out := u.run(`curl -s --unix-socket ` + s.socket() + ` http://x/api/v1/images/slow/status`); !strings.Contains(out, `"failed"`) || !strings.Contains(out, "versd ended") {
		t.Errorf("status: %s", out)
	}
	u.project(map[string]string{"Dockerfile": "FROM scratch\nADD base.tar.gz /\nRUN echo quick\n"})
	u.run("vers build && vers rootfs delete -f slow")
}

// peak is the most memory that a process has had since it began, or since forget, in bytes.
func peak(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(status)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatalf("process %d has no VmHWM:\n%s", pid, status)
	return 0
}

func forget(t *testing.T, pid int) {
	t.Helper()
	must(t, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0))
}

// A folder of 2 GiB takes neither the client's nor the server's memory: not when it is sent, not when its digest is made,
// not when the upload is interrupted, of which nothing is left on either side.
func TestLargeFolder(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	u := newUser(t, s)
	u.project(map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n", ".dockerignore": "large\n", "vers.toml": "[rootfs]\nname = \"small\"\n"})
	build := func(name string) (client, server int64, log string) {
		t.Helper()
		forget(t, s.cmd.Process.Pid)
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "vers"), "build", "--rootfs", name)
		cmd.Dir, cmd.Env = u.dir, u.env()
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, out, tail(s.log()))
		}
		return cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10, peak(t, s.cmd.Process.Pid), string(out)
	}
	build("warm-up")
	client, server, _ := build("small")
	large := filepath.Join(u.dir, "large")
	must(t, errors.Join(os.WriteFile(large, nil, 0o644), os.Truncate(large, 2<<30))) // a hole: what is sent are zeroes
	for _, known := range []bool{false, true} {
		ofClient, ofServer, log := build("large")
		if strings.Contains(log, "STEP") == known {
			t.Errorf("known %v: %s", known, log)
		}
		// What differs by itself from one build to the next is a few MiB.
		if ofClient > client*3/2+16<<20 || ofServer > server*3/2+16<<20 {
			t.Errorf("known %v: the client had %d MiB, with a small folder %d; versd %d, with a small folder %d", known, ofClient>>20, client>>20, ofServer>>20, server>>20)
		}
	}

	must(t, os.Truncate(large, 12<<30))
	before := u.run("ls -A . $HOME | sort")
	r := u.try(`vers build --rootfs interrupted & build=$!
for i in $(seq 600); do ls ` + s.data() + `/builds/*/work/large >/dev/null 2>&1 && break; sleep 0.1; done
kill -INT $build; wait $build`)
	if r.code != 130 || strings.Contains(r.stderr, "STEP") {
		t.Errorf("interrupted: %+v", r)
	}
	eventually(t, "nothing of the upload is left", func() error {
		builds, err := os.ReadDir(filepath.Join(s.data(), "builds"))
		if err != nil || len(builds) > 0 {
			return fmt.Errorf("%d builds, %w", len(builds), err)
		}
		return nil
	})
	if after := u.run("ls -A . $HOME | sort"); after != before {
		t.Errorf("left on the client's side:\n%s\nbefore:\n%s", after, before)
	}
	if out := u.run(`curl -s --unix-socket ` + s.socket() + ` http://x/api/v1/images/interrupted/status`); !strings.Contains(out, `"failed"`) {
		t.Errorf("status: %s", out)
	}
}

// An image of a single program, as "FROM scratch" and one COPY make it, is enough for a machine: no shell, no /etc, no folder.
func TestImageOfOneProgram(t *testing.T) {
	u := newUser(t, shared)
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(u.dir, "treelist"), "./treelist")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build treelist: %v\n%s", err, out)
	}
	u.project(map[string]string{"Dockerfile": "FROM scratch\nCOPY treelist /bin/app\nENTRYPOINT [\"/bin/app\", \"/bin\"]\n", ".dockerignore": "x\n"})
	t.Cleanup(func() { u.deleteAll(); u.try("vers rootfs delete -f one") })
	u.run("vers build --rootfs one")
	var vm struct {
		VMID string `json:"vm_id"`
	}
	u.json("vers run --rootfs one --start --wait --format json", &vm)
	eventually(t, "its log", func() error {
		if got := u.run("vers logs " + vm.VMID); !strings.Contains(got, `"app" mode=100755`) {
			return fmt.Errorf("its log: %q", got)
		}
		return nil
	})
	commit := u.run("vers commit " + vm.VMID + " --format json | jq -r .commit_id")
	u.json("vers run-commit "+commit+" --wait --format json", &vm)
	if got := u.run("vers exec " + vm.VMID + " /bin/app /bin"); !strings.Contains(got, `"app" mode=100755`) {
		t.Errorf("a command: %q", got)
	}
	if r := u.try("vers exec " + vm.VMID + " 'echo x'"); r.code == 0 || r.stderr == "" {
		t.Errorf("a script where there is no shell: %+v", r)
	}
}
