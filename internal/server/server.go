// Package server is the HTTP API (spec/api.md): it authenticates, reads requests, calls the machine manager and the
// registry, and writes answers. It decides nothing about VMs. One file per resource.
//
// Every answer with a status of 400 or more has the body {"error", "success": false}, whoever found the mistake: a
// handler, huma's validation, the router or a middleware.
package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"vers/internal/build/images"
	"vers/internal/build/steps"
	"vers/internal/catalog"
	"vers/internal/deploy"
	"vers/internal/gateway"
	"vers/internal/guest"
	"vers/internal/machine"
	"vers/internal/registry"
)

// Machines is what the server needs of the machine manager. Every method MUST treat an object of another organisation
// as one that does not exist, and MUST roll back what it began when it fails.
type Machines interface {
	Makers
	Snapshots
	Controls
	Views
	steps.Machines
}

// Makers make VMs. A returned VM is shown by List.
type Makers interface {
	Run(ctx context.Context, caller machine.Caller, req machine.RunRequest) (machine.VM, error)
	Restore(ctx context.Context, caller machine.Caller, commitID string, network machine.NetworkRequest, options ...machine.Option) (machine.VM, error)
	Branch(ctx context.Context, caller machine.Caller, vmID string, req machine.BranchRequest) ([]machine.VM, machine.Commit, machine.Timing, error)
	BranchCommit(ctx context.Context, caller machine.Caller, commitID string, count int, network machine.NetworkRequest, options ...machine.Option) ([]machine.VM, error)
	// Fork makes a VM from any organisation's commit, and a commit of that VM, which publish names in the transaction
	// that makes both visible. Who may fork what is the server's business.
	Fork(ctx context.Context, caller machine.Caller, commitID string, publish machine.Publish) (machine.VM, machine.Commit, error)
}

// Snapshots make, delete and compare commits.
type Snapshots interface {
	Commit(ctx context.Context, caller machine.Caller, vmID string, req machine.CommitRequest) (machine.Commit, machine.Timing, error)
	DeleteCommit(ctx context.Context, caller machine.Caller, commitID string) error
	// Diff compares any commits. Who may read which is the server's business.
	Diff(ctx context.Context, req machine.DiffRequest) (machine.Diff, error)
}

// Controls change a VM. With skipWaitBoot a VM that is still booting is fault.Conflict, else it is waited for.
type Controls interface {
	Pause(ctx context.Context, caller machine.Caller, vmID string, skipWaitBoot bool) error
	Resume(ctx context.Context, caller machine.Caller, vmID string, skipWaitBoot bool) error
	Sleep(ctx context.Context, caller machine.Caller, vmID string, skipWaitBoot bool) error
	SetTerms(ctx context.Context, caller machine.Caller, vmID string, t machine.Terms) error
	Delete(ctx context.Context, caller machine.Caller, vmID string, skipWaitBoot bool) error
	Resize(ctx context.Context, caller machine.Caller, vmID string, fsSizeMiB int64, skipWaitBoot bool) error
	SetLabels(ctx context.Context, caller machine.Caller, vmID string, labels map[string]string) error
	// SetNetwork changes what a VM may reach. It holds when SetNetwork returns.
	SetNetwork(ctx context.Context, caller machine.Caller, vmID string, req machine.NetworkRequest) error
}

// Views look at VMs and into them.
type Views interface {
	Get(ctx context.Context, caller machine.Caller, vmID string) (machine.VM, error)
	List(ctx context.Context, caller machine.Caller) ([]machine.VM, error)
	// Guest waits for a booting VM and wakes a sleeping one; a paused or dead one is fault.Conflict.
	Guest(ctx context.Context, caller machine.Caller, vmID string) (*guest.Client, error)
	// Egress says what a VM may reach, and what it did.
	Egress(ctx context.Context, caller machine.Caller, vmID string) (machine.EgressView, error)
	// Reachable says why a guest cannot be reached now. It neither waits nor wakes.
	Reachable(ctx context.Context, caller machine.Caller, vmID string) error
	// SleepsAfter is how long a VM may be without use before it falls asleep; 0 for ever.
	SleepsAfter(vm machine.VM) time.Duration
	// OnWake has f called after every wake, failed or not.
	OnWake(f func(took time.Duration, err error))
	// Usage says what the caller's organisation uses, and may use.
	Usage(ctx context.Context, caller machine.Caller) (machine.Usage, error)
	Totals
}

// Version says which build this is.
type Version struct {
	Version string
	GitHash string
}

// Options of New.
type Options struct {
	Machines Machines
	Registry *registry.Registry
	Catalog  *catalog.Catalog // keeps answers for repeated requests
	Images   *images.Service  // nil: no images are made
	Gateway  *gateway.Gateway // nil: VMs are reached through the API only
	BuildDir string           // for the files of builds under way; "" the system's
	Audit    Auditor          // nil: nothing is recorded
	Logger   *slog.Logger     // nil: slog.Default
	Version  Version

	// KeepQuotes switches off the repair of commands that older clients quote twice (spec/api.md 3.4).
	KeepQuotes bool
}

// Server answers requests. It is an http.Handler.
type Server struct {
	Options
	mux     *http.ServeMux
	api     huma.API
	handler http.Handler
	guests  func(ctx context.Context, caller machine.Caller, vmID string) (guestAccess, error)
	openAPI func() ([]byte, error)
	answers answers
	limits  limits
	actions map[string]string // ids of operations, by the router's pattern
	metrics *metrics
	now     func() time.Time

	deployer *deploy.Runner
	builder  *steps.Runner

	requests, sshSessions atomic.Int64 // open now
}

// New makes a server. The http.Server that uses it needs ConnContext, or nobody is local. Close it in the end.
func New(options Options) *Server {
	s := &Server{Options: options, mux: http.NewServeMux(), now: time.Now, actions: map[string]string{}}
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	s.answers.running = map[string]chan struct{}{}
	s.guests = s.openGuest
	s.api = newAPI(s.mux)
	s.metrics = newMetrics(s)
	s.deployer = s.newDeployer()
	s.builder = s.newBuilder()
	s.routeVMs()
	s.routeBranches()
	s.routeEgress()
	s.routeExec()
	s.routeFiles()
	s.routeSSH()
	s.routeCommits()
	s.routeDiff()
	s.routeRepositories()
	s.routeTags()
	s.routeTagHistory()
	s.routePlainTags()
	s.routeForks()
	s.routePublic()
	s.routeEnv()
	s.routeAccount()
	s.routeImages()
	s.routeBuilds()
	s.mux.HandleFunc("GET /openapi.json", s.serveOpenAPIJSON)
	s.routeKeys()
	s.routeShellAuth()
	s.routeDomains()
	s.routeSSHKeys()
	s.routeGateway()
	s.routeDeploy()
	s.routeLegacy()
	s.openAPI = sync.OnceValues(s.api.OpenAPI().YAML)
	s.handler = s.observe(s.cleanPath(s.authenticate(s.readBody(s.repeat(s.record(http.HandlerFunc(s.route)))))))
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// contextKey marks the values this package puts into contexts.
type contextKey int

const (
	keyLocal contextKey = iota // bool: the connection came over a UNIX socket
	keyCaller
	keyNotes
)

// ConnContext belongs into http.Server.ConnContext: it marks connections over a UNIX socket, which need no key. Who may
// open the socket is decided by its file mode.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	if _, ok := conn.(*net.UnixConn); ok {
		return context.WithValue(ctx, keyLocal, true)
	}
	return ctx
}

// changeLimit is how long a call that changes something may go on, whether its client is still there or not.
const changeLimit = 10 * time.Minute

// detach makes a context for a call that changes something: a client that goes away must not stop it half way, or it
// would leave what nobody has asked for.
func detach(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), changeLimit)
}
