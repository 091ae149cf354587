package catalog

import (
	"context"
	"time"
)

// PutAnswer keeps the first answer to a request. A second one is fault.Conflict.
func (r *records) PutAnswer(ctx context.Context, a Answer) error {
	return insert(ctx, r.write, "answer", `INSERT INTO idempotency (key_id, request, status, digest, body, created_at)
		VALUES (?, ?, ?, ?, ?, ?)`, a.KeyID, a.Request, a.Status, bytesOf(a.Digest), bytesOf(a.Body), timeText(a.CreatedAt))
}

func bytesOf(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Answer gives the answer kept for a request.
func (r *records) Answer(ctx context.Context, keyID, request string) (Answer, error) {
	return one(ctx, r.read, "answer", func(row scan) (a Answer, err error) {
		return a, row(&a.KeyID, &a.Request, &a.Status, &a.Digest, &a.Body, timeColumn{&a.CreatedAt})
	}, `SELECT key_id, request, status, digest, body, created_at FROM idempotency WHERE key_id = ? AND request = ?`, keyID, request)
}

// RemoveAnswersBefore forgets the answers given before a time.
func (r *records) RemoveAnswersBefore(ctx context.Context, t time.Time) error {
	_, err := r.write.ExecContext(ctx, `DELETE FROM idempotency WHERE created_at < ?`, timeText(t))
	return translate(err, "answers")
}
