package conformance

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// call is one request.
type call struct {
	method, path string
	values       map[string]string // of the path's placeholders
	query        string
	key          string
	body         object
	raw          string // instead of body
	idempotency  string
	contentType  string
	header       map[string]string
	slashes      bool // doubled, as clients with a trailing slash in VERS_URL send them
}

func (c call) with(placeholder, value string) call {
	values := map[string]string{placeholder: value}
	for k, v := range c.values {
		if k != placeholder {
			values[k] = v
		}
	}
	c.values = values
	return c
}

// answer is what came back.
type answer struct {
	request string
	status  int
	header  http.Header
	body    string
}

func (a answer) String() string {
	return fmt.Sprintf("%s: %d %s %s", a.request, a.status, a.header.Get("Content-Type"), a.body)
}

// isError reports whether the answer is an error of the form that all clients read.
func (a answer) isError(status int) bool {
	var e struct {
		Error   string
		Success *bool
	}
	return a.status == status && strings.Contains(a.header.Get("Content-Type"), "application/json") &&
		json.Unmarshal([]byte(a.body), &e) == nil && e.Error != "" && e.Success != nil && !*e.Success
}

// json decodes the answer.
func (a answer) json(t *testing.T) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("%s: %v", a, err)
	}
	return v
}

// text gives a field of an answer that is an object.
func (a answer) text(t *testing.T, field string) string {
	t.Helper()
	o, _ := a.json(t).(object)
	s, ok := o[field].(string)
	if !ok || s == "" {
		t.Fatalf("%s: no text in field %s", a, field)
	}
	return s
}

// client follows no redirect: one turns a POST into a GET.
var client = &http.Client{
	Timeout:       2 * time.Minute,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (w *world) send(c call) answer {
	w.t.Helper()
	path := c.path
	for name, value := range c.values {
		path = strings.ReplaceAll(path, "{"+name+"}", value)
	}
	if c.slashes {
		path = "/" + strings.Replace(path, "/v1/", "/v1//", 1)
	}
	url := w.target.URL + path
	if c.query != "" {
		url += "?" + c.query
	}
	body := c.raw
	if body == "" && c.body != nil {
		data, err := json.Marshal(c.body)
		w.must(err)
		body = string(data)
	}
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), c.method, url, reader)
	w.must(err)
	for name, value := range map[string]string{"Authorization": "Bearer " + c.key, "X-Idempotency-Key": c.idempotency, "Content-Type": c.contentType} {
		if value != "" && value != "Bearer " {
			req.Header.Set(name, value)
		}
	}
	for name, value := range c.header {
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	w.must(err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	w.must(err)
	return answer{request: c.method + " " + strings.TrimPrefix(url, w.target.URL), status: resp.StatusCode, header: resp.Header, body: string(data)}
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func isID(s string) bool { return uuid.MatchString(s) }
