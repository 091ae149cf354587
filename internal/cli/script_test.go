package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"vers/internal/registry"
	"vers/test/rig"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"vers": func() {
			app, err := New(Build{Version: "1.2.3-test"})
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			app.Socket = "" // a server of this machine must not answer for the fake
			os.Exit(app.Main(os.Args[1:]))
		},
		"jq": miniJQ,
	})
}

// TestScripts runs testdata/script/*.txtar: what users type and what they see, against a whole server without QEMU.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		server := rig.NewWithLogin(t, registry.LoginToken)
		testscript.Run(t, testscript.Params{
			Files: []string{file},
			Setup: func(env *testscript.Env) error {
				home := filepath.Join(env.WorkDir, "home")
				env.Setenv("HOME", home)
				env.Setenv("VERS_URL", server.URL)
				env.Setenv("VERS_API_KEY", server.Key)
				env.Setenv("KEY", server.Key)
				env.Setenv("OTHER_KEY", server.OtherKey)
				env.Setenv("HEX", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
				return os.MkdirAll(home, 0o755)
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"code":   wantCode,
				"let":    letVariable,
				"server": func(ts *testscript.TestScript, _ bool, args []string) { control(ts, server, args) },
			},
			RequireUniqueNames: true,
		})
	}
}

// wantCode is "code N program args...": the program must end with exit code N.
func wantCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		if _, scanErr := fmt.Sscanf(err.Error(), "exit status %d", &got); scanErr != nil {
			ts.Fatalf("%v", err)
		}
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// letVariable is "let NAME stdout": the variable gets the last program's output.
func letVariable(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// control changes what the server does.
func control(ts *testscript.TestScript, server *rig.Server, args []string) {
	switch args[0] {
	case "boot":
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		server.SlowBoots(n)
	case "cut":
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		server.CutStreams(n)
	case "crash":
		server.Crash(args[1])
	case "dead":
		ts.Check(server.AddDead(args[1]))
	case "org":
		key, err := server.AddKey(args[1])
		ts.Check(err)
		fmt.Fprintln(ts.Stdout(), key)
	case "approve":
		ts.Check(server.Approve(args[1], args[2]))
	case "files":
		files := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[1]))))
		ts.Defer(files.Close)
		fmt.Fprintln(ts.Stdout(), files.URL)
	case "image":
		fmt.Fprintln(ts.Stdout(), strings.Join(server.Built(args[1]), "\n"))
	case "requests":
		fmt.Fprintln(ts.Stdout(), strings.Join(server.Requests(), "\n"))
	default:
		ts.Fatalf("unknown control %q", args[0])
	}
}

// miniJQ knows "jq -r .key" and "jq -r .[].key", so that scripts need no jq on the machine.
func miniJQ() {
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		os.Exit(2)
	}
	path := os.Args[len(os.Args)-1]
	var values []any
	if rest, ok := strings.CutPrefix(path, ".[]"); ok {
		path = rest
		err = json.Unmarshal(data, &values)
	} else {
		values = make([]any, 1)
		err = json.Unmarshal(data, &values[0])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "jq: not JSON: %v: %s\n", err, bytes.TrimSpace(data))
		os.Exit(2)
	}
	for _, value := range values {
		object, _ := value.(map[string]any)
		if found := object[strings.TrimPrefix(path, ".")]; found != nil {
			fmt.Println(found)
		} else {
			fmt.Println("null")
		}
	}
}
