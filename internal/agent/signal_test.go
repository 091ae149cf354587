package agent

import (
	"context"
	"encoding/json"
	"testing"

	"vers/internal/fault"
	"vers/internal/guest"
)

// A signal for a command that is just being started waits for it: it has not ended.
func TestSignalBeforeStart(t *testing.T) {
	s := &Server{table: newTable(1 << 20)}
	e, err := s.table.create("early")
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(guest.SignalRequest{ExecID: "early", Signal: "TERM"})
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.signal(gone, body); !fault.Is(err, fault.Timeout) {
		t.Errorf("before its start: %v", err)
	}
	told := make(chan error)
	go func() {
		_, err := s.signal(t.Context(), body)
		told <- err
	}()
	e.finish(127) // it could not be started
	if err := <-told; !fault.Is(err, fault.Conflict) {
		t.Errorf("a command that could not be started: %v", err)
	}
}
