package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// Filter chooses entries. Zero values choose all.
type Filter struct {
	Since time.Time
	Org   string // name or id
}

func (f Filter) wants(e Entry) bool {
	return !e.Time.Before(f.Since) && (f.Org == "" || f.Org == e.Org || f.Org == e.OrgID)
}

// Read calls do for the chosen entries of the log in the file path, oldest first. Without a log there are none. A line
// that a crash cut off is left out.
func Read(path string, f Filter, do func(Entry) error) error {
	oldest := 0
	for {
		if _, err := os.Stat(older(path, oldest+1)); err != nil {
			break
		}
		oldest++
	}
	for n := oldest; n >= 0; n-- {
		if err := readFile(older(path, n), f, do); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read the audit log: %w", err)
		}
	}
	return nil
}

func readFile(path string, f Filter, do func(Entry) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewReaderSize(file, 64<<10)
	for {
		line, err := lines.ReadBytes('\n')
		var e Entry
		if json.Unmarshal(line, &e) == nil && f.wants(e) {
			if err := do(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
