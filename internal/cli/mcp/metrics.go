package mcp

import (
	"sync"
	"time"
)

// counter counts the calls of a tool.
type counter struct {
	mu sync.Mutex
	ToolMetrics
	took time.Duration
}

// ToolMetrics are the counters of a tool since the server started.
type ToolMetrics struct {
	Calls     int64 `json:"calls" jsonschema:"calls that began"`
	Errors    int64 `json:"errors" jsonschema:"calls that failed"`
	Limited   int64 `json:"limited" jsonschema:"calls refused because there were too many in a minute"`
	Running   int64 `json:"running" jsonschema:"calls under way"`
	TotalMS   int64 `json:"total_ms" jsonschema:"time that ended calls took together, in milliseconds"`
	LongestMS int64 `json:"longest_ms" jsonschema:"time of the longest call, in milliseconds"`
}

// Metrics are the counters of a server.
type Metrics struct {
	UptimeSeconds int64                  `json:"uptime_seconds"`
	Tools         map[string]ToolMetrics `json:"tools" jsonschema:"by name; tools that were never called are left out"`
}

func (c *counter) refuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Limited++
}

func (c *counter) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Calls++
	c.Running++
}

func (c *counter) end(took time.Duration, failed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Running--
	if failed {
		c.Errors++
	}
	c.took += took
	c.TotalMS = c.took.Milliseconds()
	c.LongestMS = max(c.LongestMS, took.Milliseconds())
}

// Metrics gives the counters now.
func (s *Server) Metrics() Metrics {
	m := Metrics{UptimeSeconds: int64(s.options.Now().Sub(s.started) / time.Second), Tools: map[string]ToolMetrics{}}
	for _, t := range s.order {
		t.count.mu.Lock()
		if t.count.Calls+t.count.Limited > 0 {
			m.Tools[t.name] = t.count.ToolMetrics
		}
		t.count.mu.Unlock()
	}
	return m
}
