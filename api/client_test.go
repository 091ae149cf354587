package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vers/api"
	"vers/test/rig"
)

const testKey = "test-key"

func client(t *testing.T, address string, options ...api.Option) *api.Client {
	t.Helper()
	c, err := api.NewClient(address, append([]api.Option{api.WithKey(testKey)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c
}

func TestAddresses(t *testing.T) {
	for _, good := range []string{"http://h", "http://h:1/base/", "https://h", "unix:///run/x.sock"} {
		if _, err := api.NewClient(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "h", "h:1", "ftp://h", "http://", "unix://h/x", "unix:x", "http://h\n"} {
		if _, err := api.NewClient(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestRequest checks what goes over the wire.
func TestRequest(t *testing.T) {
	var got *http.Request
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		got, body = r, string(data)
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = io.WriteString(w, `{"vms":[{"vm_id":"x"}]}`)
	}))
	defer server.Close()
	var trace []string
	c := client(t, server.URL+"/base/", api.WithUserAgent("test/1"), api.WithTrace(func(line string) { trace = append(trace, line) }))
	ctx := context.Background()
	if _, err := c.BranchRef(ctx, "a b", "ü%", api.BranchOptions{Count: 2, KeepPaused: true}); err != nil {
		t.Fatal(err)
	}
	if want := "/base/api/v1/vm/branch/by_ref/a%20b/%C3%BC%25?count=2&keep_paused=true"; got.URL.RequestURI() != want {
		t.Errorf("sent %s, want %s", got.URL.RequestURI(), want)
	}
	header := got.Header
	if header.Get("Authorization") != "Bearer test-key" || header.Get("User-Agent") != "test/1" ||
		header.Get(api.HeaderIdempotencyKey) == "" || body != "" || header.Get("Content-Type") != "" {
		t.Errorf("header %v, body %q", header, body)
	}
	if joined := strings.Join(trace, "\n"); !strings.Contains(joined, "200 OK") || strings.Contains(joined, testKey) {
		t.Errorf("trace %q", joined)
	}
	if err := c.UpdateRepoTag(ctx, "r", "t", api.RepoTagUpdate{Description: api.Null()}); err != nil {
		t.Fatal(err)
	}
	if body != `{"description":null}` || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("body %q", body)
	}
}

func TestErrors(t *testing.T) {
	answers := map[string]struct {
		status  int
		body    string
		message string
	}{
		"json":    {409, `{"error":"name is taken","success":false}`, "name is taken"},
		"message": {400, `{"message":"bad thing"}`, "bad thing"},
		"text":    {403, "Forbidden\n", "Forbidden"},
		"empty":   {500, "", "the server answered 500 Internal Server Error to GET /api/v1/repositories/empty"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := answers[filepath.Base(r.URL.Path)]
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}))
	defer server.Close()
	for name, a := range answers {
		_, err := client(t, server.URL).Repository(context.Background(), name)
		var response *api.ResponseError
		if !errors.As(err, &response) || response.Status != a.status || err.Error() != a.message {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }))
	defer other.Close()
	if _, err := client(t, other.URL).VMs(context.Background()); err == nil || !strings.Contains(err.Error(), "is it a vers server?") {
		t.Error(err)
	}
}

// TestRetries: calls that never arrived are repeated, broken ones only if they change nothing.
func TestRetries(t *testing.T) {
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		calls.Add(1)
		panic(http.ErrAbortHandler)
	}))
	defer server.Close()
	var connect *api.ConnectError
	if _, err := client(t, server.URL).VMs(context.Background()); !errors.As(err, &connect) || connect.Refused || calls.Load() < 3 {
		t.Errorf("GET: %v after %d calls", err, calls.Load())
	}
	calls.Store(0)
	if _, err := client(t, server.URL).Branch(context.Background(), "x", api.BranchOptions{}); !errors.As(err, &connect) || calls.Load() != 1 {
		t.Errorf("POST: %v after %d calls", err, calls.Load())
	}
	// A server that comes up while the client tries.
	socket := filepath.Join(t.TempDir(), "s")
	c := client(t, "unix://"+socket, api.WithTrace(func(line string) {
		if strings.HasPrefix(line, "trying again") && calls.Add(1) == 2 {
			listener, err := net.Listen("unix", socket)
			if err != nil {
				t.Error(err)
				return
			}
			up := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"vm_id":"made"}`)
			})}
			go func() { _ = up.Serve(listener) }()
			t.Cleanup(func() { up.Close() })
		}
	}))
	calls.Store(0)
	if vm, err := c.NewRoot(context.Background(), api.NewRootRequest{}, false); err != nil || vm.VMID != "made" {
		t.Errorf("%+v, %v", vm, err)
	}
	_, err := client(t, "unix://"+socket+"-gone").VMs(context.Background())
	if !errors.As(err, &connect) || !connect.Refused || !strings.Contains(err.Error(), socket+"-gone") || !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestCancel(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	why := errors.New("the user went home")
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
	if _, err := client(t, server.URL).VMs(ctx); !errors.Is(err, why) {
		t.Error(err)
	}
}

func TestCommitsPages(t *testing.T) {
	server := rig.New(t)
	server.AddCommits(250)
	commits, err := client(t, server.URL, api.WithKey(server.Key)).Commits(context.Background())
	if err != nil || len(commits) != 250 {
		t.Errorf("%d commits, %v", len(commits), err)
	}
}

// TestRunSurvivesBreaks breaks the stream again and again while a command writes a lot.
func TestRunSurvivesBreaks(t *testing.T) {
	server := rig.New(t)
	id := server.Run(t).ID
	server.CutStreams(5)
	var stdout, stderr bytes.Buffer
	script := `i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo done >&2; exit 9`
	code, err := client(t, server.URL, api.WithKey(server.Key)).Run(context.Background(), id, api.ExecRequest{Command: []string{"sh", "-c", script}}, &stdout, &stderr, nil)
	if err != nil || code != 9 || stderr.String() != "done\n" {
		t.Errorf("code %d, %v, stderr %q", code, err, stderr.String())
	}
	var want strings.Builder
	for i := range 20000 {
		fmt.Fprintln(&want, "line", i)
	}
	if stdout.String() != want.String() {
		t.Errorf("output differs: %d bytes instead of %d", stdout.Len(), want.Len())
	}
}

// TestRunNeverInventsSuccess: a stream that just ends is a failure.
func TestRunNeverInventsSuccess(t *testing.T) {
	chunk := `{"type":"chunk","stream":"stdout","data_b64":"YQ==","cursor":1}` + "\n"
	tests := map[string]struct{ body, message string }{
		"no exit code": {`{"type":"exit"}` + "\n", "without an exit code"},
		"error event":  {`{"type":"error","code":"lost","message":"the VM is gone"}` + "\n", "the VM is gone (lost)"},
		"garbage":      {chunk + "garbage\n", "no event"},
		"long line":    {chunk + strings.Repeat("x", api.MaxEventLine+10), "more than 16 MiB"},
		"unknown exec": {chunk, "unknown exec"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/attach") {
					http.Error(w, "unknown exec", http.StatusNotFound)
					return
				}
				_, _ = io.WriteString(w, test.body)
			}))
			defer server.Close()
			var out bytes.Buffer
			_, err := client(t, server.URL).Run(context.Background(), "x", api.ExecRequest{Command: []string{"a"}}, &out, &out, nil)
			if err == nil || !strings.Contains(err.Error(), test.message) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzExecStream(f *testing.F) {
	f.Add([]byte(`{"type":"chunk","stream":"stdout","data_b64":"YQ==","cursor":1}` + "\n\n" + `{"type":"exit","exit_code":3}` + "\n"))
	f.Add([]byte("{}\n{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		stream := api.NewExecStreamForTest(io.NopCloser(bytes.NewReader(data)))
		for range bytes.Count(data, []byte("\n")) {
			event, err := stream.Next()
			if err != nil {
				return
			}
			if _, err := json.Marshal(event); err != nil {
				t.Errorf("event %+v: %v", event, err)
			}
		}
		if _, err := stream.Next(); err == nil {
			t.Error("more events than lines")
		}
	})
}

// exampleT lets an example use the server made for tests.
type exampleT struct {
	testing.TB
	cleanups []func()
}

func (e *exampleT) Cleanup(f func())                { e.cleanups = append(e.cleanups, f) }
func (*exampleT) Helper()                           {}
func (*exampleT) Errorf(format string, args ...any) { log.Fatalf(format, args...) }
func (*exampleT) Context() context.Context          { return context.Background() }
func (*exampleT) Fatal(args ...any)                 { log.Fatal(args...) }
func (e *exampleT) TempDir() string {
	dir, err := os.MkdirTemp("", "vers-example")
	if err != nil {
		log.Fatal(err)
	}
	e.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (e *exampleT) end() {
	for _, f := range slices.Backward(e.cleanups) {
		f()
	}
}

func Example() {
	test := &exampleT{}
	defer test.end()
	server := rig.New(test) // stands for a real one
	client, err := api.NewClient(server.URL, api.WithKey(server.Key))
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	image, kernel, mem, cpus, disk := "default", "default.bin", int64(512), int64(1), int64(1024)
	vm, err := client.NewRoot(ctx, api.NewRootRequest{VMConfig: api.VMConfig{
		MemSizeMiB: &mem, VCPUCount: &cpus, FSSizeMiB: &disk, ImageName: &image, KernelName: &kernel,
	}}, true)
	if err != nil {
		log.Fatal(err)
	}
	commands := api.ExecRequest{Command: []string{"sh", "-c", "echo kept > note"}}
	if _, err := client.Run(ctx, vm.VMID, commands, os.Stdout, os.Stderr, nil); err != nil {
		log.Fatal(err)
	}
	commit, err := client.Commit(ctx, vm.VMID, api.CommitRequest{}, false)
	if err != nil {
		log.Fatal(err)
	}
	again, err := client.FromCommit(ctx, api.FromCommitRequest{CommitID: &commit.CommitID})
	if err != nil {
		log.Fatal(err)
	}
	code, err := client.Run(ctx, again.VMID, api.ExecRequest{Command: []string{"cat", "note"}}, os.Stdout, os.Stderr, nil)
	fmt.Println(code, err)
	// Output:
	// kept
	// 0 <nil>
}
