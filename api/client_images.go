package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
)

// Image gives one rootfs image, by name or id.
func (c *Client) Image(ctx context.Context, nameOrID string) (Image, error) {
	var out Image
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"images", nameOrID}}, &out)
}

// CreateImage makes a rootfs image of one in a registry. It goes on in the background: see ImageStatus.
func (c *Client) CreateImage(ctx context.Context, req ImageRequest) (ImageJob, error) {
	var out ImageJob
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"images", "create"}, body: req}, &out)
}

// ImageStatus says how far the making of an image is.
func (c *Client) ImageStatus(ctx context.Context, name string) (ImageStatus, error) {
	var out ImageStatus
	return out, c.do(ctx, call{method: http.MethodGet, path: []string{"images", name, "status"}}, &out)
}

// DeleteImage deletes a rootfs image, by name or id.
func (c *Client) DeleteImage(ctx context.Context, nameOrID string) (ImageDeleted, error) {
	var out ImageDeleted
	return out, c.do(ctx, call{method: http.MethodDelete, path: []string{"images", nameOrID}}, &out)
}

// UploadOptions say what an uploaded archive becomes.
type UploadOptions struct {
	Name        string
	Description string
	SizeMiB     int64 // least size of the file system; 0: as the content needs
	Replace     bool
	RootFS      bool     // it is a root file system, also with a Dockerfile at its top
	Keep        []string // /etc/hostname, /etc/hosts or /etc/resolv.conf, where the archive's is to stay
	Config      *ImageConfig
}

// UploadImage makes a rootfs image of an archive: a root file system, or a folder with a Dockerfile at its top, unless
// it is said to be a root file system.
func (c *Client) UploadImage(ctx context.Context, o UploadOptions, archive io.Reader) (ImageJob, error) {
	query := url.Values{"image_name": {o.Name}}
	for name, value := range map[string]string{"description": o.Description, "size_mib": positive(o.SizeMiB), "replace": truth(o.Replace),
		"rootfs": truth(o.RootFS)} {
		if value != "" {
			query.Set(name, value)
		}
	}
	for _, path := range o.Keep {
		query.Add("keep", path)
	}
	header := http.Header{}
	if o.Config != nil {
		data, err := json.Marshal(o.Config)
		if err != nil {
			return ImageJob{}, err
		}
		header.Set(HeaderImageConfig, base64.StdEncoding.EncodeToString(data))
	}
	var out ImageJob
	return out, c.do(ctx, call{method: http.MethodPost, path: []string{"images", "upload"}, query: query, header: header, upload: archive}, &out)
}

func positive(n int64) string {
	if n <= 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func truth(b bool) string {
	if !b {
		return ""
	}
	return "true"
}

// BuildOptions say how a folder is built.
type BuildOptions struct {
	Name       string // of the image; one that has it is replaced
	Dockerfile string // path in the folder; "" Dockerfile
	Target     string
	NoCache    bool
	Args       map[string]string
	// Folder is the folder's digest ("" unknown): a server that has built the same before answers without reading it.
	Folder string
}

// BuildImage sends a folder as a tar archive, has its Dockerfile built, and passes on what the build prints as it comes. When
// ctx ends, the server gives the build up.
func (c *Client) BuildImage(ctx context.Context, o BuildOptions, folder io.Reader, log func(text string)) (RootfsBuilt, error) {
	query := url.Values{}
	for name, value := range map[string]string{"dockerfile": o.Dockerfile, "target": o.Target, "no_cache": truth(o.NoCache)} {
		if value != "" {
			query.Set(name, value)
		}
	}
	for key, value := range o.Args {
		query.Add("build_arg", key+"="+value)
	}
	header := http.Header{}
	if o.Folder != "" {
		header.Set(HeaderFolder, o.Folder)
	}
	resp, err := c.send(ctx, call{method: http.MethodPut, path: []string{"rootfs", o.Name}, query: query, upload: folder, accept: "application/x-ndjson", header: header})
	if err != nil {
		return RootfsBuilt{}, err
	}
	defer resp.Body.Close()
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind == "application/json" {
		var out RootfsBuilt // a server that does not stream
		return out, json.NewDecoder(resp.Body).Decode(&out)
	}
	built, err := readBuild(resp.Body, log)
	var failed *ResponseError
	switch {
	case errors.As(err, &failed):
		failed.RequestID, failed.Method, failed.Path = resp.Header.Get(HeaderRequestID), http.MethodPut, resp.Request.URL.Path
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return built, err
}

// readBuild reads the lines of a build. A stream that ends without a result or an error was cut.
func readBuild(body io.Reader, log func(text string)) (RootfsBuilt, error) {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 64<<10), MaxEventLine)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var e BuildEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return RootfsBuilt{}, fmt.Errorf("the server's answer holds a line that is no event: %w", err)
		}
		switch {
		case e.Type == BuildLog && log != nil:
			log(e.Text)
		case e.Type == BuildError:
			return RootfsBuilt{}, &ResponseError{Status: e.Status, Message: e.Error}
		case e.Type == BuildResult && e.Result != nil:
			return *e.Result, nil
		}
	}
	if err := lines.Err(); err != nil {
		return RootfsBuilt{}, fmt.Errorf("%w: %w", ErrBuildCut, err)
	}
	return RootfsBuilt{}, ErrBuildCut
}

// ErrBuildCut says that the connection broke before a build had ended. The server gives such a build up.
var ErrBuildCut = errors.New("the connection to the server broke before the build had ended")
