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
	Scenario     string            `json:"scenario"`
	Measured     string            `json:"measured"` // date
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
	lab      *lab
	scenario string // that runs
	rows     []row
}

func newReport(l *lab) *report { return &report{lab: l} }

// begin says which scenario the next quantities are of.
func (r *report) begin(scenario string) { r.scenario = scenario }

// add records a quantity without a baseline.
func (r *report) add(name, unit string, params map[string]string, s samples) {
	r.compare(name, unit, params, s, "", nil)
}

// compare records a quantity beside what something else needed in the same run.
func (r *report) compare(name, unit string, params map[string]string, s samples, baseline string, b samples) {
	if len(s) == 0 {
		return
	}
	line := row{Scenario: r.scenario, Measured: time.Now().UTC().Format(time.DateOnly), Name: name, Params: params, Unit: unit, N: len(s), P50: s.quantile(0.5), P99: s.quantile(0.99)}
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

// write writes what was measured until now, in the order of the scenarios. Of scenarios that have not run, the results that
// are there stay.
func (r *report) write(dir string, order []scenario) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var earlier []row
	if data, err := os.ReadFile(filepath.Join(dir, "latest.json")); err == nil {
		if err := json.Unmarshal(data, &earlier); err != nil {
			return fmt.Errorf("earlier results: %w", err)
		}
	}
	var rows []row
	for _, s := range order {
		of := func(all []row) (found []row) {
			for _, l := range all {
				if l.Scenario == s.name {
					found = append(found, l)
				}
			}
			return found
		}
		if now := of(r.rows); len(now) > 0 {
			rows = append(rows, now...)
		} else {
			rows = append(rows, of(earlier)...)
		}
	}
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "latest.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "latest.md"), []byte(r.markdown(rows)), 0o644)
}

func (r *report) markdown(rows []row) string {
	var b strings.Builder
	host := r.lab.host
	b.WriteString("# Measurements\n\n")
	fmt.Fprintf(&b, "%d cores, accelerator %s (%s), QEMU %s, %s. Default image. Made by `make bench`.\n\n", runtime.NumCPU(), host.Accelerator, host.AcceleratorBy, host.QEMUVersion, r.lab.memory)
	b.WriteString("| What | Conditions | n | p50 | p99 | Unit | Beside | its p50 | Ratio | Measured |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, l := range rows {
		baseline, ratio := "", ""
		if l.BaselineName != "" {
			baseline, ratio = fmt.Sprintf("%.1f", l.BaselineP50), fmt.Sprintf("%.3f", l.Ratio)
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %.1f | %.1f | %s | %s | %s | %s | %s |\n", l.Name, paramText(l.Params), l.N, l.P50, l.P99, l.Unit, l.BaselineName, baseline, ratio, l.Measured)
	}
	return b.String()
}
