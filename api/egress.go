package api

import (
	"context"
	"net/http"
	"time"
)

// Modes of an EgressPolicy.
const (
	EgressInherit  = ""         // what the level above permits
	EgressInternet = "internet" // the public internet
	EgressNone     = "none"     // nothing but what allow has
)

// EgressPolicy is what one level, the server, an organisation or a VM, permits [ours]. A lower level only narrows.
type EgressPolicy struct {
	Mode                 string   `json:"mode,omitempty" doc:"[ours] none, internet, or empty: what the level above permits"`
	Allow                []string `json:"allow,omitempty" nullable:"true" doc:"[ours] Permitted besides: address, network or name, with or without ports: 10.0.0.0/8:80,443, example.org:443, *.example.org"`
	Deny                 []string `json:"deny,omitempty" nullable:"true" doc:"[ours] Refused, whatever is allowed"`
	BytesPerSecond       int64    `json:"bytes_per_second,omitempty" doc:"[ours] In each direction; 0 is no limit"`
	ConnectionsPerSecond int64    `json:"connections_per_second,omitempty" doc:"[ours] 0 is no limit"`
}

// NetworkOptions say what a VM may reach and who reaches it [ours]. What is left out is inherited, or stays as it is.
type NetworkOptions struct {
	Egress   *EgressPolicy `json:"egress,omitempty" doc:"[ours] The VM's own policy; {} permits what the organisation does"`
	Internal *bool         `json:"internal,omitempty" nullable:"true" doc:"[ours] Whether it reaches VMs of its organisation as <alias>.internal, and they it; both sides have to"`
	Alias    *string       `json:"alias,omitempty" nullable:"true" doc:"[ours] Its name for them, kept as the label vers.alias"`
}

// IsZero reports whether nothing is asked for.
func (o NetworkOptions) IsZero() bool { return o.Egress == nil && o.Internal == nil && o.Alias == nil }

// BranchRequest is the body of the branch calls; it may be left out [ours].
type BranchRequest struct {
	NetworkOptions
}

// EgressLevel is one of the policies that a VM is under.
type EgressLevel struct {
	Of     string       `json:"of" doc:"server, organisation or VM"`
	Policy EgressPolicy `json:"policy"`
	Text   string       `json:"text" doc:"The policy as the command line takes it"`
}

// Traffic counts what went over a VM's network card since the server took the VM over [ours].
type Traffic struct {
	BytesOut       uint64 `json:"bytes_out" doc:"Sent by the VM"`
	BytesIn        uint64 `json:"bytes_in"`
	PacketsOut     uint64 `json:"packets_out"`
	PacketsIn      uint64 `json:"packets_in"`
	ConnectionsOut uint64 `json:"connections_out" doc:"TCP connections and UDP flows that the VM opened"`
	ConnectionsIn  uint64 `json:"connections_in"`
	Refused        uint64 `json:"refused" doc:"Connections, datagrams and names that a policy refused"`
	Limited        uint64 `json:"limited" doc:"Connections that a limit held up or ended"`
	Spoofed        uint64 `json:"spoofed" doc:"Frames dropped because they pretended to come from somebody else"`
}

// EgressRefusal is something that a policy refused.
type EgressRefusal struct {
	Time        time.Time `json:"time" doc:"Of the last time"`
	Protocol    string    `json:"protocol" doc:"tcp, udp, or dns for a name"`
	Destination string    `json:"destination"`
	Reason      string    `json:"reason" doc:"Whose policy, and which rule"`
	Count       uint64    `json:"count"`
}

// VMEgress is the answer of GET and PUT /vm/{id}/egress [ours].
type VMEgress struct {
	VMID     string          `json:"vm_id" format:"uuid"`
	Policy   EgressPolicy    `json:"policy" doc:"The VM's own"`
	Levels   []EgressLevel   `json:"levels" nullable:"false" doc:"All that hold, the server's first; each of them has to permit a connection"`
	Internal bool            `json:"internal" doc:"Whether it takes part in the organisation's internal network"`
	Names    []string        `json:"names" nullable:"false" doc:"Under which its peers reach it"`
	Traffic  Traffic         `json:"traffic"`
	Refusals []EgressRefusal `json:"refusals" nullable:"false" doc:"The latest, newest first"`
}

// Egress shows what a VM may reach, and what was refused.
func (c *Client) Egress(ctx context.Context, vmID string) (VMEgress, error) {
	var out VMEgress
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"vm", vmID, "egress"}}, &out)
}

// SetEgress changes what a VM may reach, at once. Open connections that are not permitted any more are cut.
func (c *Client) SetEgress(ctx context.Context, vmID string, o NetworkOptions) (VMEgress, error) {
	var out VMEgress
	return out, c.do(ctx, call{method: http.MethodPut, path: []string{"vm", vmID, "egress"}, body: o}, &out)
}
