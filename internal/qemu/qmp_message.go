package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// qmpMessageLimit bounds one QMP message. The largest answer we ask for, the schema, has 210 KB in QEMU 7.2.
const qmpMessageLimit = 16 << 20

// qmpMessage is one line from QEMU: the greeting, an answer, or an event.
type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *QMPError       `json:"error"`
	ID       *uint64         `json:"id"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	Time     struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// QMPError is QEMU's answer to a command that failed.
type QMPError struct {
	Command     string `json:"-"`
	Class       string `json:"class"`
	Description string `json:"desc"`
}

func (e *QMPError) Error() string {
	return fmt.Sprintf("QEMU refuses %s: %s", e.Command, e.Description)
}

// Event is something QEMU tells unasked.
type Event struct {
	Name string
	Data json.RawMessage
	Time time.Time
}

// parseQMP reads one line. A message must be exactly one of greeting, answer, error and event.
func parseQMP(line []byte) (qmpMessage, error) {
	var m qmpMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return qmpMessage{}, fmt.Errorf("read QMP message: %w", err)
	}
	kinds := 0
	for _, present := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if present {
			kinds++
		}
	}
	if kinds != 1 {
		return qmpMessage{}, errors.New("read QMP message: it is not one of greeting, answer, error or event")
	}
	return m, nil
}

func (m qmpMessage) event() Event {
	return Event{Name: m.Event, Data: m.Data, Time: time.Unix(m.Time.Seconds, m.Time.Microseconds*1000)}
}
