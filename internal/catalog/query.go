package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"vers/internal/fault"
)

// timeLayout has a fixed width, so that the text sorts like the time. Always UTC.
const timeLayout = "2006-01-02T15:04:05.000000000Z07:00"

func timeText(t time.Time) string { return t.UTC().Format(timeLayout) }

func optionalTimeText(t *time.Time) any {
	if t == nil {
		return nil
	}
	return timeText(*t)
}

// nullable stores "" as NULL; reading uses coalesce(column, ”).
func nullable(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// timeColumn scans a time stored by timeText.
type timeColumn struct{ dest *time.Time }

// Scan implements sql.Scanner.
func (c timeColumn) Scan(value any) error {
	text, ok := value.(string)
	if !ok {
		return fmt.Errorf("time column holds %T", value)
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	*c.dest = t.UTC()
	return err
}

// optionalTimeColumn scans a time that may be NULL.
type optionalTimeColumn struct{ dest **time.Time }

// Scan implements sql.Scanner.
func (c optionalTimeColumn) Scan(value any) error {
	if value == nil {
		return nil
	}
	var t time.Time
	*c.dest = &t
	return timeColumn{&t}.Scan(value)
}

// scan is the Scan method of a row.
type scan func(dest ...any) error

func list[T any](ctx context.Context, ex executor, what string, read func(scan) (T, error), query string, args ...any) ([]T, error) {
	rows, err := ex.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, translate(err, what)
	}
	defer rows.Close()
	var found []T
	for rows.Next() {
		record, err := read(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", what, err)
		}
		found = append(found, record)
	}
	if err := rows.Err(); err != nil {
		return nil, translate(err, what)
	}
	return found, nil
}

// one expects a single row; none is fault.NotFound with what was looked for.
func one[T any](ctx context.Context, ex executor, what string, read func(scan) (T, error), query string, args ...any) (T, error) {
	var none T
	found, err := list(ctx, ex, what, read, query, args...)
	if err != nil {
		return none, err
	}
	if len(found) == 0 {
		return none, fault.NotFoundf("%s not found", what)
	}
	return found[0], nil
}

// count runs a query that gives one number.
func count(ctx context.Context, ex executor, query string, args ...any) (int64, error) {
	return one(ctx, ex, "count", func(row scan) (n int64, err error) { return n, row(&n) }, query, args...)
}

// insert writes a new row.
func insert(ctx context.Context, ex executor, what, query string, args ...any) error {
	_, err := ex.ExecContext(ctx, query, args...)
	return translate(err, what)
}

// change writes to one existing row; none is fault.NotFound.
func change(ctx context.Context, ex executor, what, query string, args ...any) error {
	result, err := ex.ExecContext(ctx, query, args...)
	if err != nil {
		return translate(err, what)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return translate(err, what)
	}
	if n == 0 {
		return fault.NotFoundf("%s not found", what)
	}
	return nil
}

// translate gives errors of SQLite the kind that callers act on.
func translate(err error, what string) error {
	var broken *sqlite.Error
	if !errors.As(err, &broken) {
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	switch code := broken.Code(); {
	case code == sqlite3.SQLITE_CONSTRAINT_UNIQUE, code == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
		return fault.Conflictf("%s already exists", what)
	case code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return fault.New(fault.Conflict, "%s: it is still in use, or what it refers to is gone: %w", what, err)
	case code&0xff == sqlite3.SQLITE_FULL:
		return fault.New(fault.Exhausted, "%s: no space left for the catalogue, free some and try again: %w", what, err)
	case code&0xff == sqlite3.SQLITE_BUSY:
		return fault.New(fault.Unavailable, "%s: the catalogue is locked by another process: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
