package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// row is one measurement: what is promised in the item 7.
type row struct {
	Name         string            `json:"name"`
	Params       map[string]string `json:"params"`
	Unit         string            `json:"unit"`
	N            int               `json:"n"`
	P50          float64           `json:"p50"`
	P99          float64           `json:"p99"`
	BaselineName string            `json:"baseline_name"`
	BaselineP50  float64           `json:"baseline_p50"`
	Ratio        float64           `json:"ratio"` // p50 over baseline_p50; below 1 is better than the baseline
}

// samples of one quantity.
type samples []float64

func (s *samples) add(d time.Duration)  { *s = append(*s, float64(d.Microseconds())/1000) }
func (s *samples) addBytes(bytes int64) { *s = append(*s, float64(bytes)/(1<<20)) }

// quantile of a sorted copy, by the nearest-rank rule.
func (s samples) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	rank := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(rank, 1), len(sorted))-1]
}

type report struct {
	lab  *lab
	rows []row
}

func newReport(l *lab) *report { return &report{lab: l} }

// add records a quantity without a baseline.
func (r *report) add(name, unit string, params map[string]string, s samples) {
	r.compare(name, unit, params, s, "", nil)
}

// compare records a quantity beside what something else needed in the same run.
func (r *report) compare(name, unit string, params map[string]string, s samples, baseline string, b samples) {
	if len(s) == 0 {
		return
	}
	line := row{Name: name, Params: params, Unit: unit, N: len(s), P50: s.quantile(0.5), P99: s.quantile(0.99)}
	if len(b) > 0 {
		line.BaselineName, line.BaselineP50 = baseline, b.quantile(0.5)
		if line.BaselineP50 > 0 {
			line.Ratio = line.P50 / line.BaselineP50
		}
	}
	r.rows = append(r.rows, line)
	fmt.Fprintf(os.Stderr, "  %-42s %9.1f %s (p99 %.1f, n %d)\n", name+" "+paramText(params), line.P50, unit, line.P99, line.N)
}

func paramText(params map[string]string) string {
	var parts []string
	for k, v := range params {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r.rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "latest.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "latest.md"), []byte(r.markdown()), 0o644)
}

func (r *report) markdown() string {
	var b strings.Builder
	host := r.lab.host
	fmt.Fprintf(&b, "# Measurements of %s\n\n", time.Now().UTC().Format("2006-01-02"))
	fmt.Fprintf(&b, "%d cores, accelerator %s (%s), QEMU %s, %s. Default image. Made by `make bench`.\n\n", runtime.NumCPU(), host.Accelerator, host.AcceleratorBy, host.QEMUVersion, r.lab.memory)
	b.WriteString("| What | Conditions | n | p50 | p99 | Unit | Beside | its p50 | Ratio |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, l := range r.rows {
		baseline, ratio := "", ""
		if l.BaselineName != "" {
			baseline, ratio = fmt.Sprintf("%.1f", l.BaselineP50), fmt.Sprintf("%.3f", l.Ratio)
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %.1f | %.1f | %s | %s | %s | %s |\n", l.Name, paramText(l.Params), l.N, l.P50, l.P99, l.Unit, l.BaselineName, baseline, ratio)
	}
	return b.String()
}
