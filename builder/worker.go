package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/sirupsen/logrus"
	"go.podman.io/common/libimage"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"golang.org/x/sys/unix"

	"vers/internal/build/engine"
	"vers/internal/build/engine/embedded/wire"
	"vers/internal/fault"
)

// worker does what is asked for over stdin and stdout, in the root file system that init made.
type worker struct {
	surroundings
	conn    *wire.Conn
	store   storage.Store
	images  *libimage.Runtime
	session *session
	// ahead is the request after the one being served, or will be; nil if nobody reads ahead.
	ahead chan received
}

type received struct {
	request wire.Request
	err     error
}

func workerMain() int {
	logrus.SetOutput(os.Stderr)
	logrus.SetLevel(logrus.ErrorLevel)
	w := &worker{conn: wire.NewConn(os.Stdin, os.Stdout)}
	// What is printed by accident must not get among the frames.
	os.Stdout = os.Stderr
	err := w.open()
	for {
		request, receiveErr := w.receive()
		if errors.Is(receiveErr, io.EOF) {
			break
		}
		if receiveErr != nil {
			fmt.Fprintln(os.Stderr, "vers-builder:", receiveErr)
			return 1
		}
		if request.Interrupt != nil {
			continue // the command ended just before; its reply has been sent
		}
		var reply wire.Reply
		if err == nil {
			reply = w.serve(context.Background(), request)
		} else {
			reply.Err = wire.Pack(err)
		}
		if err := w.conn.Send(reply); err != nil {
			return 1
		}
		if w.session == nil {
			break
		}
	}
	if w.session != nil {
		_ = w.session.close()
	}
	if w.store != nil {
		_, _ = w.store.Shutdown(true)
	}
	return 0
}

func (w *worker) open() error {
	var err error
	if w.surroundings, err = readSurroundings(); err != nil {
		return err
	}
	w.store, err = storage.GetStore(storage.StoreOptions{
		// The run root counts mounts, which are this worker's alone: it ends with the worker's mount namespace.
		RunRoot: "/run/containers/storage", GraphRoot: storagePath, GraphDriverName: "overlay",
	})
	if err != nil {
		return fault.Unavailablef("open the store of images: %w. It needs a file system that overlay mounts work on", err)
	}
	w.images, err = libimage.RuntimeFromStore(w.store, &libimage.RuntimeOptions{SystemContext: systemContext("")})
	return err
}

func (w *worker) receive() (wire.Request, error) {
	if w.ahead != nil {
		next := <-w.ahead
		w.ahead = nil
		return next.request, next.err
	}
	return w.read()
}

// readAhead listens to the client while a command runs, for its Interrupt.
func (w *worker) readAhead() {
	ahead := make(chan received, 1)
	w.ahead = ahead
	go func() {
		request, err := w.read()
		ahead <- received{request, err}
	}()
}

func (w *worker) read() (wire.Request, error) {
	var request wire.Request
	kind, content, err := w.conn.Next()
	if err != nil {
		return request, err
	}
	if kind != wire.Message {
		return request, fmt.Errorf("a frame of kind %q came instead of a request", kind)
	}
	return request, json.Unmarshal(content, &request)
}

// serve does one thing.
func (w *worker) serve(ctx context.Context, request wire.Request) wire.Reply {
	var image *engine.Image
	var code int
	var err error
	switch {
	case request.Build != nil:
		image, err = w.build(ctx, *request.Build)
	case request.Recall != nil:
		image, err = w.recall(ctx, *request.Recall)
	case request.Resolve != nil:
		image, err = w.resolve(ctx, *request.Resolve)
	case request.Load != nil:
		data := w.conn.DataReader()
		image, err = w.load(ctx, *request.Load, data)
		_, _ = io.Copy(io.Discard, data) // the client sends to the end
	case request.Export != nil:
		err = w.export(ctx, *request.Export)
	case request.Clean != nil:
		err = w.clean(request.Clean.IDs)
	case request.Open != nil:
		image, err = w.openSession(ctx, *request.Open)
	case w.session == nil:
		err = fault.New(fault.Internal, "the request needs a session")
	default:
		code, err = w.serveSession(ctx, request)
	}
	return wire.Reply{Image: image, Code: code, Err: wire.Pack(noSpace(err))}
}

func diskFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// noSpace gives a full disk its kind.
func noSpace(err error) error {
	if diskFull(err) {
		return fault.Exhaustedf("the disk with the images is full: %w", err)
	}
	return err
}

// systemContext says to the image library what belongs to this run. Platform is os/arch[/variant], or "".
func systemContext(platform string) *types.SystemContext {
	sys := &types.SystemContext{
		SignaturePolicyPath: signaturePath, SystemRegistriesConfPath: registriesConf, AuthFilePath: authFile,
		BigFilesTemporaryDir: temporaryDir, DockerRegistryUserAgent: "vers-builder/" + version,
	}
	sys.OSChoice, sys.ArchitectureChoice, sys.VariantChoice = splitPlatform(platform)
	return sys
}
