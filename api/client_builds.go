package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// CommitBuildOptions say how a folder is built.
type CommitBuildOptions struct {
	Dockerfile   string // path in the folder; "" Dockerfile
	Tag          string
	Target       string
	Args         map[string]string
	NoCache      bool
	Keep         bool
	Ready        string
	ReadyTimeout time.Duration // 0: the server's
	Config       VMConfig      // of machines that no commit gives their sizes
}

func (o CommitBuildOptions) query() url.Values {
	q := url.Values{}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	number := func(name string, value *int64) {
		if value != nil && *value != 0 {
			q.Set(name, strconv.FormatInt(*value, 10))
		}
	}
	text := func(name string, value *string) {
		if value != nil {
			set(name, *value)
		}
	}
	set("dockerfile", o.Dockerfile)
	set("tag", o.Tag)
	set("target", o.Target)
	set("ready", o.Ready)
	if o.ReadyTimeout > 0 {
		set("ready_timeout_secs", strconv.FormatInt(int64((o.ReadyTimeout+time.Second-1)/time.Second), 10))
	}
	if o.NoCache {
		set("no_cache", "true")
	}
	if o.Keep {
		set("keep", "true")
	}
	for name, value := range o.Args {
		q.Add("build_arg", name+"="+value)
	}
	number("mem_size_mib", o.Config.MemSizeMiB)
	number("vcpu_count", o.Config.VCPUCount)
	number("fs_size_mib", o.Config.FSSizeMiB)
	text("image_name", o.Config.ImageName)
	text("kernel_name", o.Config.KernelName)
	return q
}

// BuildCommit sends a folder as a tar archive and has its Dockerfile built into a commit; each is told of what happens. When
// ctx ends, the server gives the build up. A build that fails is a *CommitBuildError.
func (c *Client) BuildCommit(ctx context.Context, o CommitBuildOptions, folder io.Reader, each func(CommitBuildEvent)) (CommitBuild, error) {
	resp, err := c.send(ctx, call{method: http.MethodPost, path: []string{"builds"}, query: o.query(), upload: folder, accept: "application/x-ndjson"})
	if err != nil {
		return CommitBuild{}, err
	}
	defer resp.Body.Close()
	built, err := readCommitBuild(resp.Body, each)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return built, err
}

func readCommitBuild(body io.Reader, each func(CommitBuildEvent)) (CommitBuild, error) {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 64<<10), MaxEventLine)
	lines.Split(wholeLines)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var e CommitBuildEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return CommitBuild{}, fmt.Errorf("the server's answer holds a line that is no event: %w", err)
		}
		switch {
		case e.Type == CommitBuildFailed && e.Error != nil:
			return CommitBuild{}, e.Error
		case e.Type == CommitBuildResult && e.Result != nil:
			return *e.Result, nil
		}
		each(e)
	}
	return CommitBuild{}, errors.Join(ErrBuildCut, lines.Err())
}
