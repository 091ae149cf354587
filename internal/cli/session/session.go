// Package session speaks SSH with a VM over an upgraded API connection: interactive shells with the local terminal
// in raw mode, and single commands with streamed input.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"vers/api"
)

const (
	handshakeLimit  = 30 * time.Second
	keepAlivePeriod = 10 * time.Second
	keepAliveMisses = 6
)

// ErrLost says that the connection to the VM broke.
var ErrLost = errors.New("the connection to the VM was lost")

// Dial logs in to the VM as root. It verifies the VM's host key with the one that the server names, so nobody in
// between can pretend to be the VM. When ctx ends, the connection is closed.
func Dial(ctx context.Context, client *api.Client, vmID string) (*ssh.Client, error) {
	dialing, cancel := context.WithTimeoutCause(ctx, handshakeLimit, fmt.Errorf("no answer from the VM's SSH server within %v: %w", handshakeLimit, context.DeadlineExceeded))
	defer cancel()
	config, err := clientConfig(dialing, client, vmID)
	if err != nil {
		return nil, err
	}
	conn, err := client.SSH(dialing, vmID)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(dialing, func() { conn.Close() })
	defer stop()
	sshConn, channels, requests, err := ssh.NewClientConn(conn, vmID, config)
	if err != nil {
		conn.Close()
		if dialing.Err() != nil {
			return nil, context.Cause(dialing)
		}
		return nil, fmt.Errorf("log in to VM '%s': %w", vmID, err)
	}
	sshClient := ssh.NewClient(sshConn, channels, requests)
	unhook := context.AfterFunc(ctx, func() { sshClient.Close() })
	go func() {
		_ = sshClient.Wait()
		unhook()
	}()
	go keepAlive(sshClient)
	return sshClient, nil
}

// DialKept is Dial for a connection that outlives ctx, which bounds the dialling only: what is under way can be ended in
// an orderly way. Close it.
func DialKept(ctx context.Context, client *api.Client, vmID string) (*ssh.Client, error) {
	outer, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, hangUp)
	conn, err := Dial(outer, client, vmID)
	if !stop() && ctx.Err() != nil {
		if err == nil {
			conn.Close()
		}
		hangUp()
		return nil, context.Cause(ctx)
	}
	if err != nil {
		hangUp()
		return nil, err
	}
	go func() {
		_ = conn.Wait()
		hangUp()
	}()
	return conn, nil
}

// clientConfig fetches the VM's keys.
func clientConfig(ctx context.Context, client *api.Client, vmID string) (*ssh.ClientConfig, error) {
	keys, err := client.SSHKey(ctx, vmID)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey([]byte(keys.PrivateKey))
	if err != nil {
		return nil, fmt.Errorf("read the SSH key of VM '%s': %w", vmID, err)
	}
	if keys.HostKey == "" {
		return nil, fmt.Errorf("the server names no SSH host key for VM '%s', so its identity cannot be verified", vmID)
	}
	hostKey, _, _, _, err := ssh.ParseAuthorizedKey([]byte(keys.HostKey))
	if err != nil {
		return nil, fmt.Errorf("read the SSH host key of VM '%s': %w", vmID, err)
	}
	return &ssh.ClientConfig{
		User: "root",
		Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if string(key.Marshal()) != string(hostKey.Marshal()) {
				return fmt.Errorf("the VM shows the host key %s, but %s is expected; not connecting",
					ssh.FingerprintSHA256(key), ssh.FingerprintSHA256(hostKey))
			}
			return nil
		},
		HostKeyAlgorithms: []string{hostKey.Type()},
	}, nil
}

// keepAlive closes a connection whose other side is silent: a link that hangs would never end by itself.
func keepAlive(client *ssh.Client) {
	ended := make(chan struct{})
	go func() {
		_ = client.Wait()
		close(ended)
	}()
	ticker := time.NewTicker(keepAlivePeriod)
	defer ticker.Stop()
	answers := make(chan struct{}, 1)
	waiting, missed := false, 0
	for {
		select {
		case <-ended:
			return
		case <-answers:
			waiting, missed = false, 0
		case <-ticker.C:
			if waiting {
				if missed++; missed >= keepAliveMisses {
					client.Close()
					return
				}
				continue
			}
			waiting = true
			go func() {
				// Any answer, also a refusal, shows that the other side lives.
				if _, _, err := client.SendRequest("keepalive@openssh.com", true, nil); err == nil {
					answers <- struct{}{}
				}
			}()
		}
	}
}

// Exec runs a command line in the VM's login shell with streamed input and gives its exit code; 128 plus the
// signal's number if a signal ended it. in may be nil. When ctx ends because of a signal, that is passed on to the command,
// and its end awaited; when it ends otherwise, the command is killed and ctx's cause returned.
func Exec(ctx context.Context, client *ssh.Client, command string, in io.Reader, stdout, stderr io.Writer) (int, error) {
	session, err := client.NewSession()
	if err != nil {
		return 0, fmt.Errorf("open an SSH session: %w", err)
	}
	defer session.Close()
	session.Stdout, session.Stderr = stdout, stderr
	stdin, err := session.StdinPipe()
	if err != nil {
		return 0, fmt.Errorf("open an SSH session: %w", err)
	}
	if err := session.Start(command); err != nil {
		return 0, fmt.Errorf("start the command: %w", err)
	}
	// Not awaited: the command may end before its input does.
	go func() {
		if in != nil {
			_, _ = io.Copy(stdin, in)
		}
		_ = stdin.Close()
	}()
	stop := context.AfterFunc(ctx, func() {
		if name := signalOf(ctx); name == "" || session.Signal(ssh.Signal(name)) != nil {
			_ = session.Signal(ssh.SIGKILL)
			_ = session.Close()
		}
	})
	defer stop()
	err = session.Wait()
	if ctx.Err() != nil && signalOf(ctx) == "" {
		return 0, context.Cause(ctx)
	}
	var exit *ssh.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit) && exit.Signal() != "":
		return 128 + signalNumbers[ssh.Signal(exit.Signal())], nil
	case errors.As(err, &exit):
		return exit.ExitStatus(), nil
	}
	return 0, fmt.Errorf("%w, the result of the command is unknown: %w", ErrLost, err)
}

// signalOf gives the name of the signal that ended ctx, if one did.
func signalOf(ctx context.Context) string {
	var signalled interface {
		error
		Signal() string
	}
	if errors.As(context.Cause(ctx), &signalled) {
		return signalled.Signal()
	}
	return ""
}

// signalNumbers are the numbers of signals on Linux.
var signalNumbers = map[ssh.Signal]int{
	ssh.SIGHUP: 1, ssh.SIGINT: 2, ssh.SIGQUIT: 3, ssh.SIGILL: 4, "TRAP": 5, ssh.SIGABRT: 6, "BUS": 7, ssh.SIGFPE: 8,
	ssh.SIGKILL: 9, ssh.SIGUSR1: 10, ssh.SIGSEGV: 11, ssh.SIGUSR2: 12, ssh.SIGPIPE: 13, ssh.SIGALRM: 14, ssh.SIGTERM: 15,
}
