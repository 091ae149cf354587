package gateway

import (
	"io"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// drainLimit is how long what one side has sent may need to reach the other after it has closed a channel.
const drainLimit = time.Minute

// proxySSH passes channels and requests between a client and a guest, in both directions, until one of them ends: also
// those that the guest opens, for forwarded ports and the client's SSH agent.
func proxySSH(client ssh.Conn, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request, guest sshSide) {
	var all sync.WaitGroup
	all.Go(func() { passChannels(channels, guest.conn, &all) })
	all.Go(func() { passChannels(guest.channels, client, &all) })
	all.Go(func() { passRequests(requests, guest.conn) })
	all.Go(func() { passRequests(guest.requests, client) })
	ended := make(chan struct{}, 2)
	for _, conn := range []ssh.Conn{client, guest.conn} {
		all.Go(func() {
			_ = conn.Wait()
			ended <- struct{}{}
		})
	}
	<-ended
	_ = client.Close()
	_ = guest.conn.Close()
	all.Wait()
}

// passRequests passes on what concerns the whole connection.
func passRequests(requests <-chan *ssh.Request, to ssh.Conn) {
	for req := range requests {
		ok, data, err := to.SendRequest(req.Type, req.WantReply, req.Payload)
		if req.WantReply {
			_ = req.Reply(ok && err == nil, data)
		}
	}
}

func passChannels(channels <-chan ssh.NewChannel, to ssh.Conn, all *sync.WaitGroup) {
	for request := range channels {
		all.Go(func() { passChannel(request, to) })
	}
}

// passChannel opens a channel that one side asks for on the other.
func passChannel(request ssh.NewChannel, to ssh.Conn) {
	far, farRequests, err := to.OpenChannel(request.ChannelType(), request.ExtraData())
	if err != nil {
		reason, message := ssh.ConnectionFailed, err.Error()
		if refused, ok := err.(*ssh.OpenChannelError); ok { //nolint:errorlint // never wrapped
			reason, message = refused.Reason, refused.Message
		}
		_ = request.Reject(reason, message)
		return
	}
	near, nearRequests, err := request.Accept()
	if err != nil {
		_ = far.Close()
		go ssh.DiscardRequests(farRequests)
		return
	}
	var order replies
	var both sync.WaitGroup
	both.Go(func() { passOne(near, nearRequests, far, &order, true, true) })
	both.Go(func() { passOne(far, farRequests, near, &order, false, request.ChannelType() != "session") })
	both.Wait()
}

// replies keeps the answer to a request of the side that opened the channel before what follows from it: a quick command
// ends while the answer that it was started is still on its way.
type replies struct{ mu sync.Mutex }

// passOne passes everything that one side of a channel sends, and closes the other side after it. Without half, the end of
// the data alone is not passed: a client that has it may close a session before it has heard the command's status.
func passOne(from ssh.Channel, requests <-chan *ssh.Request, to ssh.Channel, order *replies, opener, half bool) {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		var data sync.WaitGroup
		data.Go(func() { passData(to, from) })
		data.Go(func() { passData(to.Stderr(), from.Stderr()) })
		data.Wait()
		if half {
			_ = to.CloseWrite() // of both
		}
	}()
	for req := range requests {
		passRequest(req, to, order, opener)
	}
	select {
	case <-drained:
	case <-time.After(drainLimit):
	}
	order.mu.Lock()
	defer order.mu.Unlock()
	_ = to.Close()
}

func passData(to io.Writer, from io.Reader) {
	if _, err := io.Copy(to, from); err != nil {
		_, _ = io.Copy(io.Discard, from) // nobody takes it; the window must not stop the rest
	}
}

func passRequest(req *ssh.Request, to ssh.Channel, order *replies, opener bool) {
	if opener || !req.WantReply {
		order.mu.Lock()
		defer order.mu.Unlock()
	}
	ok, err := to.SendRequest(req.Type, req.WantReply, req.Payload)
	if req.WantReply {
		_ = req.Reply(ok && err == nil, nil)
	}
}
