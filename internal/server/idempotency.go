package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"vers/api"
	"vers/internal/catalog"
	"vers/internal/fault"
)

const (
	answersKept    = 24 * time.Hour
	answerLimit    = 4 << 20 // bytes; a larger answer (of a command) is not kept
	idempotencyMax = 255     // characters of a key
	detachedLimit  = time.Hour
)

// answers holds back repetitions of a request while the first one runs. What has been answered is in the catalogue.
type answers struct {
	mu      sync.Mutex
	running map[string]chan struct{} // closed when the first one has been answered
	swept   time.Time
}

// repeat answers a request that repeats an X-Idempotency-Key with the first answer: same API key, method and path.
// A repetition that comes while the first request runs waits for it. The first request runs to its end even if its
// client goes away, since the repetition will ask for its answer. Streams are not repeated: they can be attached to.
func (s *Server) repeat(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get(api.HeaderIdempotencyKey)
		if key == "" || !repeatable(r) {
			next.ServeHTTP(w, r)
			return
		}
		if len(key) > idempotencyMax {
			s.failure(r.Context(), operation{}, fault.Invalidf("%s has %d characters; at most %d are possible",
				api.HeaderIdempotencyKey, len(key), idempotencyMax)).write(w)
			return
		}
		answer, err := s.firstAnswer(r, key, next)
		if err != nil {
			s.failure(r.Context(), operation{}, err).write(w)
			return
		}
		answer.write(w)
	})
}

func repeatable(r *http.Request) bool {
	if strings.HasPrefix(r.URL.Path, shellAuthPath) || r.URL.Path == "/api/v1/keys" {
		return false // their answers hold API keys, which are kept nowhere
	}
	if streamed(r) {
		return false // nobody keeps the archive to compare it
	}
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		return !strings.HasSuffix(r.URL.Path, "/stream") && !strings.HasSuffix(r.URL.Path, "/attach") && !strings.HasSuffix(r.URL.Path, "/ssh")
	}
	return false
}

// firstAnswer looks the answer up, or waits for it, or has it made.
func (s *Server) firstAnswer(r *http.Request, key string, next http.Handler) (*buffer, error) {
	ctx, caller := r.Context(), callerKey(r.Context()).ID
	request := r.Method + " " + r.URL.Path + " " + key
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	digest := sha256.Sum256(append([]byte(r.URL.RawQuery+"\n"), body...))
	for {
		done, first := s.answers.enter(caller + " " + request)
		if !first {
			select {
			case <-done: // by now it is in the catalogue, or it failed and may be tried anew
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		defer s.answers.leave(caller + " " + request)
		break
	}
	s.sweep(ctx)
	kept, err := s.Catalog.Answer(ctx, caller, request)
	switch {
	case err == nil && s.now().Sub(kept.CreatedAt) < answersKept:
		if !bytes.Equal(kept.Digest, digest[:]) {
			return nil, fault.Invalidf("%s was used before for a request with other content; choose a new one for each request", api.HeaderIdempotencyKey)
		}
		return stored(kept), nil
	case err != nil && !fault.Is(err, fault.NotFound):
		return nil, err
	}
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachedLimit)
	defer cancel()
	answer := &buffer{header: http.Header{}, status: http.StatusOK}
	next.ServeHTTP(answer, r.WithContext(detached))
	// A server fault is not an answer: whatever it had begun was undone, so it may be tried again.
	if answer.status < 500 && answer.body.Len() <= answerLimit {
		err = s.Catalog.PutAnswer(detached, catalog.Answer{KeyID: caller, Request: request, Digest: digest[:],
			Status: answer.status, Body: answer.body.Bytes(), CreatedAt: s.now()})
		if err != nil {
			s.Logger.ErrorContext(ctx, "answer not kept for repetitions", "request_id", notesOf(ctx).id, "error", err)
		}
	}
	return answer, nil
}

// enter reports whether the caller is the first; else the channel is closed when the first one is done.
func (a *answers) enter(request string) (<-chan struct{}, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if done, ok := a.running[request]; ok {
		return done, false
	}
	a.running[request] = make(chan struct{})
	return nil, true
}

func (a *answers) leave(request string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.running[request])
	delete(a.running, request)
}

// sweep forgets old answers, at most once an hour.
func (s *Server) sweep(ctx context.Context) {
	now := s.now()
	s.answers.mu.Lock()
	due := now.Sub(s.answers.swept) > time.Hour
	if due {
		s.answers.swept = now
	}
	s.answers.mu.Unlock()
	if !due {
		return
	}
	if err := s.Catalog.RemoveAnswersBefore(ctx, now.Add(-answersKept)); err != nil {
		s.Logger.ErrorContext(ctx, "old answers not removed", "error", err)
	}
}

// buffer is an answer in memory.
type buffer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (b *buffer) Header() http.Header         { return b.header }
func (b *buffer) WriteHeader(status int)      { b.status = status }
func (b *buffer) Write(p []byte) (int, error) { return b.body.Write(p) }

func (b *buffer) write(w http.ResponseWriter) {
	for name, values := range b.header {
		w.Header()[name] = values
	}
	w.WriteHeader(b.status)
	w.Write(b.body.Bytes()) //nolint:errcheck // the client is gone, nobody is left to tell
}

// stored makes an answer from the catalogue. All bodies are JSON.
func stored(a catalog.Answer) *buffer {
	b := &buffer{header: http.Header{}, status: a.Status}
	b.body.Write(a.Body)
	if len(a.Body) > 0 {
		b.header.Set("Content-Type", "application/json")
	}
	if final(a.Status, false) {
		b.header.Set(api.HeaderShouldRetry, "false")
	}
	return b
}
