// Package catalog keeps the metadata of a server in SQLite: what exists, whose it is and what stands on what. Files
// (disks, memory, images) lie beside it in the data directory and are never written before their row allows it.
//
// The database runs in WAL mode with synchronous=FULL: when a write returns, it has reached stable storage. There is
// one connection for writing, so writers queue in the process and never see a busy database, and a pool for reading.
package catalog

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // registers the database/sql driver "sqlite"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Catalog is an open catalogue. All methods are safe for concurrent use.
type Catalog struct {
	records
	readers *sql.DB
	writer  *sql.DB
	reserve *reserve
}

// Tx is a transaction: the same methods as Catalog, seen by nobody else until InTx returns.
type Tx struct{ records }

// records holds the queries. Outside of a transaction they read and write through different connections.
type records struct {
	read  executor
	write executor
}

type executor interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

const readerConnections = 8

// Open opens the catalogue in the file path, makes it when it is missing and brings its schema up to date.
func Open(ctx context.Context, path string) (*Catalog, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open catalogue: %w", err)
	}
	if err := hide(path); err != nil {
		return nil, fmt.Errorf("open catalogue: %w", err)
	}
	writer, err := sql.Open("sqlite", dsn(path, "immediate"))
	if err != nil {
		return nil, fmt.Errorf("open catalogue %s: %w", path, err)
	}
	writer.SetMaxOpenConns(1)
	reserve := &reserve{path: path + ".reserve"}
	if err := reserve.retry(func() error { return migrate(ctx, writer) }); err != nil {
		return nil, errors.Join(fmt.Errorf("open catalogue %s: %w", path, err), writer.Close())
	}
	readers, err := sql.Open("sqlite", dsn(path, "deferred"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open catalogue %s: %w", path, err), writer.Close())
	}
	readers.SetMaxOpenConns(readerConnections)
	readers.SetMaxIdleConns(readerConnections)
	if err := reserve.fill(); err != nil {
		return nil, errors.Join(err, readers.Close(), writer.Close())
	}
	return &Catalog{records: records{read: readers, write: reserved{writer, reserve}}, readers: readers, writer: writer, reserve: reserve}, nil
}

// hide makes the file readable for its owner only: it holds private keys and environment variables. SQLite gives the
// files beside it the same mode.
func hide(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Chmod(0o600), file.Close())
}

// dsn spells the connection string: a file URI, so that any character may occur in the path.
func dsn(path, lock string) string {
	query := url.Values{"_txlock": {lock}, "_pragma": {
		"busy_timeout(10000)", // first: the pragmas after it may have to wait
		"journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)",
	}}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String()
}

func migrate(ctx context.Context, db *sql.DB) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, dir, goose.WithAllowOutofOrder(true))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("bring the schema up to date: %w", err)
	}
	return nil
}

// Close closes the catalogue. Nothing may use it afterwards.
func (c *Catalog) Close() error {
	return errors.Join(c.readers.Close(), c.writer.Close())
}

// InTx runs do in one transaction: all of its writes become visible and durable together when do returns nil, none of
// them otherwise. do MUST use only tx: a write on the catalogue itself would wait for the transaction to end. On a full
// disk it is called again, with the reserve.
func (c *Catalog) InTx(ctx context.Context, do func(tx *Tx) error) error {
	return c.reserve.retry(func() error { return c.inTx(ctx, do) })
}

func (c *Catalog) inTx(ctx context.Context, do func(tx *Tx) error) error {
	sqlTx, err := c.writer.BeginTx(ctx, nil)
	if err != nil {
		return translate(err, "catalogue transaction")
	}
	defer sqlTx.Rollback() //nolint:errcheck // after Commit it has nothing to do and says so
	if err := do(&Tx{records{read: sqlTx, write: sqlTx}}); err != nil {
		return err
	}
	return translate(sqlTx.Commit(), "catalogue transaction")
}
