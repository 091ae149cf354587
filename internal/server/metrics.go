package server

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/egress"
	"vers/internal/fault"
	"vers/internal/machine"
)

// metrics are what Prometheus reads. No label takes a value from a request: paths are patterns, methods the known ones.
type metrics struct {
	registry   *prometheus.Registry
	requests   *prometheus.CounterVec
	durations  *prometheus.HistogramVec
	operations *prometheus.HistogramVec
	paused     prometheus.Histogram
	wakes      *prometheus.CounterVec
	waking     prometheus.Histogram
	handler    http.Handler
}

// operations names what users wait for, by the calls that do it.
var operations = map[string]string{
	"new-root-vm": "run", "restore-vm": "restore", "commit-vm": "commit", "fork-repository": "fork",
	"branch": "branch", "branch-vm": "branch", "branch-commit": "branch", "branch-tag": "branch", "branch-ref": "branch",
}

func newMetrics(s *Server) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vers_http_requests_total",
		Help: "Requests that were answered, by pattern of the path."}, []string{"route", "method", "status"})
	m.durations = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "vers_http_request_seconds",
		Help:    "Time from a request to the end of its answer; streams last as long as they are followed.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}}, []string{"route", "method"})
	m.operations = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "vers_operation_seconds",
		Help:    "Time that run, restore, branch, commit and fork took, where they succeeded.",
		Buckets: []float64{.025, .05, .1, .2, .3, .4, .6, .8, 1, 1.5, 2, 3, 5, 10, 20, 30, 60}}, []string{"operation"})
	m.paused = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vers_pause_seconds",
		Help:    "How long a VM stood still for a branch or commit.",
		Buckets: []float64{.001, .002, .003, .005, .0075, .01, .015, .025, .05, .1, .25, .5, 1, 5}})
	m.wakes = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vers_wakes_total",
		Help: "Wakes of sleeping VMs, by result: woken or failed."}, []string{"result"})
	m.waking = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "vers_wake_seconds",
		Help:    "Time from the first who needs a sleeping VM until its guest runs and knows the time.",
		Buckets: []float64{.05, .1, .15, .2, .25, .3, .4, .5, .75, 1, 2, 5, 10, 30, 60}})
	if s.Machines != nil { // without: only the description of the API is wanted
		s.Machines.OnWake(m.woke)
	}
	open := func(name, help string, count func() int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(count()) })
	}
	m.registry.MustRegister(m.requests, m.durations, m.operations, m.paused, m.wakes, m.waking,
		open("vers_http_requests_open", "Requests that are being answered.", s.requests.Load),
		open("vers_ssh_sessions_open", "SSH connections to VMs through the API.", s.sshSessions.Load),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "vers_build_info", Help: "Version of the server; always 1.",
			ConstLabels: prometheus.Labels{"version": s.Version.Version, "git_hash": s.Version.GitHash}}, func() float64 { return 1 }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&totals{machines: s.Machines, log: s.Logger})
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
	return m
}

// Totals counts what all organisations have. Implementations measure what they have to first.
type Totals interface {
	Totals(ctx context.Context) (catalog.Totals, error)
	// Traffic sums what the VMs of each organisation sent and received, by its name.
	Traffic(ctx context.Context) (map[string]egress.Counters, error)
}

// totals asks for the numbers when they are read.
type totals struct {
	machines Totals
	log      *slog.Logger
}

var (
	descVMs     = prometheus.NewDesc("vers_vms", "VMs by state.", []string{"state"}, nil)
	descOrgs    = prometheus.NewDesc("vers_organisations", "Organisations.", nil, nil)
	descCommits = prometheus.NewDesc("vers_commits", "Commits that users see.", nil, nil)
	descBytes   = prometheus.NewDesc("vers_network_bytes_total", "Bytes over the network cards of VMs; out is sent by them.", []string{"organisation", "direction"}, nil)
	descPackets = prometheus.NewDesc("vers_network_packets_total", "Packets over the network cards of VMs.", []string{"organisation", "direction"}, nil)
	descConns   = prometheus.NewDesc("vers_network_connections_total", "Connections that VMs opened (out) and that were opened to them (in).", []string{"organisation", "direction"}, nil)
	descRefused = prometheus.NewDesc("vers_egress_refused_total", "Connections, datagrams and names that an egress policy refused.", []string{"organisation"}, nil)
	descLimited = prometheus.NewDesc("vers_egress_limited_total", "Connections of VMs that a limit held up or ended.", []string{"organisation"}, nil)
	descSpoofed = prometheus.NewDesc("vers_network_spoofed_total", "Frames of VMs dropped because they pretended to come from somebody else.", []string{"organisation"}, nil)
	descStored  = prometheus.NewDesc("vers_commits_stored_bytes", "What commits take on disk.", nil, nil)
)

const totalsLimit = 5 * time.Second

// Describe implements prometheus.Collector.
func (t *totals) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descVMs, descOrgs, descCommits, descStored, descBytes, descPackets, descConns, descRefused, descLimited, descSpoofed} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (t *totals) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), totalsLimit)
	defer cancel()
	n, err := t.machines.Totals(ctx)
	if err != nil {
		t.log.Error("metrics", "error", err)
		out <- prometheus.NewInvalidMetric(descVMs, err)
		return
	}
	gauge := func(d *prometheus.Desc, value int64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	for _, state := range []machine.State{machine.StateCreating, machine.StateBooting, machine.StateRunning, machine.StatePaused, machine.StateSleeping, machine.StateDead} {
		gauge(descVMs, n.VMs[string(state)], string(state))
	}
	gauge(descOrgs, n.Organisations)
	gauge(descCommits, n.Commits)
	gauge(descStored, n.StoredBytes)
	t.collectTraffic(ctx, out)
}

// collectTraffic tells organisations apart, not VMs: these come and go by the thousand.
func (t *totals) collectTraffic(ctx context.Context, out chan<- prometheus.Metric) {
	traffic, err := t.machines.Traffic(ctx)
	if err != nil {
		t.log.Error("metrics", "error", err)
		out <- prometheus.NewInvalidMetric(descBytes, err)
		return
	}
	counter := func(d *prometheus.Desc, value uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	for org, c := range traffic {
		for _, both := range []struct {
			desc        *prometheus.Desc
			outward, in uint64
		}{{descBytes, c.BytesOut, c.BytesIn}, {descPackets, c.PacketsOut, c.PacketsIn}, {descConns, c.ConnectionsOut, c.ConnectionsIn}} {
			counter(both.desc, both.outward, org, "out")
			counter(both.desc, both.in, org, "in")
		}
		counter(descRefused, c.Refused, org)
		counter(descLimited, c.Limited, org)
		counter(descSpoofed, c.Spoofed, org)
	}
}

// otherRoute stands for paths and methods that nothing answers.
const otherRoute = "other"

var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions}

// answered counts a request.
func (m *metrics) answered(n *notes, method string, status int, took time.Duration) {
	route := otherRoute
	if n.pattern != "" {
		route = n.pattern
		if before, path, ok := strings.Cut(route, " "); ok {
			method, route = before, path
		}
	}
	if !slices.Contains(methods, method) {
		method = otherRoute
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	m.durations.WithLabelValues(route, method).Observe(took.Seconds())
	if name, ok := operations[n.action]; ok && status < 400 {
		m.operations.WithLabelValues(name).Observe(took.Seconds())
	}
}

func (m *metrics) woke(took time.Duration, err error) {
	if err != nil {
		m.wakes.WithLabelValues("failed").Inc()
		return
	}
	m.wakes.WithLabelValues("woken").Inc()
	m.waking.Observe(took.Seconds())
}

// timing shows what an operation took, and counts the pause.
func (s *Server) timing(t machine.Timing) *api.Timing {
	s.metrics.paused.Observe(t.Paused.Seconds())
	return showTiming(t)
}

// serveMetrics answers administrators and who may open the local socket: the numbers are about all organisations.
func (s *Server) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if !administers(callerKey(r.Context())) {
		s.failure(r.Context(), operation{}, fault.Forbiddenf("forbidden: /metrics is about the whole server; it needs the server's own socket or a key made with 'versd key create --admin'")).write(w)
		return
	}
	s.metrics.handler.ServeHTTP(w, r)
}
