package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"

	"vers/internal/audit"
)

// Auditor keeps the record of who did what. *audit.Log is one.
type Auditor interface {
	Append(e audit.Entry) error
}

// unaudited are calls that change nothing in spite of their method.
var unaudited = map[string]bool{
	"validate-key": true, "legacy-validate-key": true, "exec-attach": true,
	"shell-auth-verify-key": true, "shell-auth-verify-public-key": true, "github-installation-token": true,
}

// record writes calls that change something into the audit log, when they have been answered. What an earlier answer was
// repeated for is not done again and not recorded again. Bodies are looked at for the ids of what was made, nothing else.
func (s *Server) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := &answerHead{ResponseWriter: rw}
		next.ServeHTTP(w, r)
		if s.Audit == nil {
			return
		}
		n := notesOf(r.Context())
		switch {
		case n.action == "" || unaudited[n.action]:
			return
		case (r.Method == http.MethodGet || r.Method == http.MethodHead) && n.action != "vm-ssh":
			return
		}
		key := callerKey(r.Context())
		e := audit.Entry{Time: s.now().UTC(), RequestID: n.id, OrgID: n.org, Org: n.orgName, KeyID: n.key, Key: key.Name, Actor: n.actor,
			Address: n.address, Action: n.action, Object: r.URL.Path, Made: n.made, Status: w.status, Result: n.result(w.status)}
		if e.Made == nil {
			e.Made = w.made()
		}
		if e.Org == "" && e.OrgID != "" {
			if org, err := s.Registry.Organisation(context.WithoutCancel(r.Context()), e.OrgID); err == nil {
				e.Org = org.Name
			}
		}
		// The change is done; that it could not be written down is the operator's business, not the caller's.
		if err := s.Audit.Append(e); err != nil {
			s.Logger.ErrorContext(r.Context(), "audit log", "request_id", n.id, "error", err)
		}
	})
}

// result is one word for how a call ended.
func (n *notes) result(status int) string {
	switch {
	case status < 400 && n.err != nil:
		return "failed" // a stream that ended so
	case status < 400:
		return "ok"
	case n.err != nil && status < 500:
		return strings.ToLower(http.StatusText(status))
	case status < 500:
		return "refused"
	}
	return "failed"
}

// answerHead remembers the status and the beginning of a JSON answer.
type answerHead struct {
	http.ResponseWriter
	status int
	head   bytes.Buffer
}

const answerHeadLimit = 64 << 10

func (a *answerHead) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answerHead) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if a.Header().Get("Content-Type") == "application/json" && a.status < 300 && a.head.Len()+len(p) <= answerHeadLimit {
		a.head.Write(p)
	}
	return a.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find what it needs.
func (a *answerHead) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// madeIDs are fields of answers that name what was made.
var madeIDs = []string{"vm_id", "commit_id", "tag_id", "repo_id", "key_id", "api_key_id", "domain_id", "project_id", "exec_id", "user_id", "base_image_id", "job_id"}

func (a *answerHead) made() map[string]string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(a.head.Bytes(), &fields) != nil {
		return nil
	}
	made := map[string]string{}
	for _, name := range madeIDs {
		var id string
		if json.Unmarshal(fields[name], &id) == nil && id != "" {
			made[name] = id
		}
	}
	var vms []struct {
		VMID string `json:"vm_id"`
	}
	if json.Unmarshal(fields["vms"], &vms) == nil && len(vms) > 1 {
		ids := make([]string, len(vms))
		for i, vm := range vms {
			ids[i] = vm.VMID
		}
		made["vm_id"] = strings.Join(ids, " ")
	}
	if len(made) == 0 {
		return nil
	}
	return made
}

// addressOf gives the host a request came from; "local" for the UNIX socket.
func addressOf(r *http.Request) string {
	if local, _ := r.Context().Value(keyLocal).(bool); local {
		return "local"
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
