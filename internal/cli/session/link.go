package session

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/api"
)

// linkDelays are the pauses before a Link connects again; the last one goes on for ever.
var linkDelays = []time.Duration{0, 200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second}

// Link is an SSH connection to a VM that is made again whenever it breaks, for as long as there is hope: a server that
// restarts and a VM that is paused come back, a VM that was deleted does not. Close it.
type Link struct {
	dial   func(context.Context) (*ssh.Client, error)
	notice func(string)
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	client  *ssh.Client   // nil: broken
	changed chan struct{} // closed when client changes
}

// OpenLink connects with dial. notice is told, in words for the user, about connections that break and come back. The link
// ends with ctx or Close.
func OpenLink(ctx context.Context, dial func(context.Context) (*ssh.Client, error), notice func(string)) (*Link, error) {
	client, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	l := &Link{dial: dial, notice: notice, client: client, changed: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	context.AfterFunc(l.ctx, func() {
		if client, _ := l.current(); client != nil {
			client.Close()
		}
	})
	l.wg.Go(l.keep)
	return l, nil
}

// Close ends the connection for good.
func (l *Link) Close() {
	l.cancel(context.Canceled)
	l.wg.Wait()
}

// Done is closed when there is no hope any more, or the link was closed; Err says why.
func (l *Link) Done() <-chan struct{} { return l.ctx.Done() }

// Err says why the link has ended.
func (l *Link) Err() error { return context.Cause(l.ctx) }

func (l *Link) current() (*ssh.Client, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.client, l.changed
}

func (l *Link) set(client *ssh.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.client = client
	close(l.changed)
	l.changed = make(chan struct{})
	if client != nil && l.ctx.Err() != nil {
		client.Close()
	}
}

// Client gives the connection, and waits while it is being made again.
func (l *Link) Client(ctx context.Context) (*ssh.Client, error) {
	for {
		client, changed := l.current()
		if client != nil {
			return client, nil
		}
		select {
		case <-changed:
		case <-l.ctx.Done():
			return nil, l.Err()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// keep connects again until the link ends.
func (l *Link) keep() {
	for {
		client, _ := l.current()
		_ = client.Wait()
		client.Close()
		l.set(nil)
		if l.ctx.Err() != nil {
			return
		}
		l.notice(fmt.Sprintf("%v; connecting again", ErrLost))
		again, err := l.again()
		if err != nil {
			l.cancel(err)
			return
		}
		l.notice("connected again")
		l.set(again)
	}
}

// again connects, however long it takes.
func (l *Link) again() (*ssh.Client, error) {
	said := ""
	for i := 0; ; i++ {
		select {
		case <-l.ctx.Done():
			return nil, l.Err()
		case <-time.After(linkDelays[min(i, len(linkDelays)-1)]):
		}
		client, err := l.dial(l.ctx)
		switch {
		case err == nil:
			return client, nil
		case l.ctx.Err() != nil:
			return nil, l.Err()
		}
		switch api.StatusOf(err) {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
			return nil, err
		}
		if text := err.Error(); text != said && i > 0 { // the first attempt is made at once, and may come too early
			said = text
			l.notice(fmt.Sprintf("cannot connect, and go on trying: %v", err))
		}
	}
}
