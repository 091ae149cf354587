package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"testing"
)

func FuzzParseQMP(f *testing.F) {
	for _, seed := range []string{
		`{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`,
		`{"return": {}, "id": 7}`, `{"return": null, "id": 7}`, `{"id": 1, "error": {"class": "GenericError", "desc": "no"}}`,
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}`, `{}`, `[]`, `null`, `{"id":-1}`, `{"event":"A","return":{}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseQMP(line)
		if err != nil {
			return
		}
		if (m.Greeting != nil) == (m.Event != "") && m.Return == nil && m.Error == nil {
			t.Fatalf("%q is neither or both", line)
		}
		_ = m.event()
		var into map[string]any
		_ = m.result("fuzz", &into)
	})
}

// monitorScript answers as QEMU does; each command gets what answer makes of it.
func monitorScript(t *testing.T, answer func(command string, id uint64) string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		fmt.Fprintf(theirs, "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n")
		for scanner := bufio.NewScanner(theirs); scanner.Scan(); {
			var command struct {
				Execute string
				ID      uint64
			}
			if json.Unmarshal(scanner.Bytes(), &command) != nil {
				return
			}
			line := fmt.Sprintf(`{"return": {}, "id": %d}`, command.ID)
			if command.Execute != "qmp_capabilities" {
				line = answer(command.Execute, command.ID)
			}
			if line == "" {
				return
			}
			fmt.Fprintln(theirs, line)
		}
	}()
	t.Cleanup(func() { ours.Close() })
	return ours
}

func TestQMP(t *testing.T) {
	events := make(chan Event, 4)
	conn := monitorScript(t, func(command string, id uint64) string {
		switch command {
		case "query-status":
			return fmt.Sprintf(`{"timestamp": {"seconds": 5, "microseconds": 6}, "event": "STOP", "data": {"a": 1}}`+"\n"+`{"return": {"status": "paused"}, "id": %d}`, id)
		case "refused":
			return fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "not today"}, "id": %d}`, id)
		case "late": // an answer to somebody else, then silence
			return `{"return": {}, "id": 999999}`
		}
		return ""
	})
	q, err := NewQMP(t.Context(), conn, func(e Event) { events <- e })
	must(t, err)
	var status struct{ Status string }
	must(t, q.Execute(t.Context(), "query-status", nil, &status))
	if status.Status != "paused" {
		t.Errorf("status %q", status.Status)
	}
	if e := <-events; e.Name != "STOP" || string(e.Data) != `{"a": 1}` || e.Time.Unix() != 5 {
		t.Errorf("event %+v", e)
	}
	var refused *QMPError
	if err := q.Execute(t.Context(), "refused", nil, nil); !errors.As(err, &refused) || refused.Description != "not today" || refused.Command != "refused" {
		t.Errorf("refused command: %v", err)
	}
	gone := errors.New("the caller has left")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if err := q.Execute(ctx, "late", nil, nil); !errors.Is(err, gone) {
		t.Errorf("cancelled command: %v", err)
	}
	if err := q.Execute(t.Context(), "hang up", nil, nil); !errors.Is(err, errQMPClosed) {
		t.Errorf("command that ends the connection: %v", err)
	}
	<-q.Done()
	if err := q.Execute(t.Context(), "query-status", nil, nil); !errors.Is(err, errQMPClosed) {
		t.Errorf("command after the end: %v", err)
	}
	q.Close()
}

func TestChooseMachine(t *testing.T) {
	for want, offered := range map[string][]string{
		"pc-q35-7.2":  {"pc-q35-10.0", "pc-q35-7.2", "q35", "microvm"},
		"pc-q35-12.1": {"pc-q35-9.0", "pc-q35-12.1", "pc-q35-12.0", "q35", "pc-i440fx-99.0"},
		"":            {"q35", "microvm", "pc-i440fx-7.2"},
	} {
		if got := chooseMachine(offered); got != want {
			t.Errorf("chooseMachine(%v) = %q, want %q", offered, got, want)
		}
	}
}

func TestParseHostAddress(t *testing.T) {
	if a, err := parseHostAddress("Host virtual address for 0x0 (ram) is 0x7f0123400000\r\n"); err != nil || a != 0x7f0123400000 {
		t.Errorf("%#x, %v", a, err)
	}
	for _, bad := range []string{"", "No memory is mapped at address 0x0", "Host virtual address for 0x0 (pc.bios) is 0x7f0123400000", "Host virtual address for 0x0 (ram) is (nil)"} {
		if _, err := parseHostAddress(bad); err == nil {
			t.Errorf("%q is an address", bad)
		}
	}
}

func TestProbe(t *testing.T) {
	d := newTestDriver(t, acceleratorTCG)
	c := d.capabilities
	t.Logf("%s: %s, machine %s, TCG %v, KVM %v, read-only mapping %v, file transport %v", c.Path, c.Version, c.MachineType, c.TCG, c.KVM, c.ReadOnlyMapping, c.FileTransport)
	var prober Prober
	first, err := prober.Probe(t.Context(), c.Path)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a second question must not start QEMU
	second, err := prober.Probe(ctx, c.Path)
	must(t, err)
	if first.Version != c.Version || second.Version != c.Version || c.MachineType == "" || !c.TCG {
		t.Errorf("%+v and %+v", first, second)
	}
	if _, err := prober.Probe(t.Context(), "qemu-system-nowhere"); err == nil {
		t.Error("a QEMU that is not there was probed")
	}
	if _, err := prober.Probe(t.Context(), "/bin/true"); err == nil {
		t.Error("a program that is not QEMU was probed")
	}
}
