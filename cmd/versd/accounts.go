package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vers/internal/daemon"
)

// withAccounts runs do on the accounts of the configured data directory.
func (o *options) withAccounts(cmd *cobra.Command, do func(a *daemon.Accounts) error) (err error) {
	c, err := o.load(cmd)
	if err != nil {
		return err
	}
	a, err := daemon.OpenAccounts(cmd.Context(), c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	return do(a)
}

// group makes a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(commands...)
	return cmd
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// writeTable writes rows below their heads.
func writeTable(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// parseWhen reads a point in time: a duration such as 36h or 90d, counted from now in the given direction, a date, or a
// time with zone.
func parseWhen(text string, now time.Time, direction int) (time.Time, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, direction*int(n)), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(time.Duration(direction) * d), nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, text, time.Local); err == nil {
		return t, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%q is no time: use a duration (36h, 90d), a date (2027-01-31), or a time (2027-01-31T12:00:00Z)", text)
}

// sizeUnits in MiB, longest suffix first.
var sizeUnits = []struct {
	suffix string
	mib    int64
}{{"tib", 1 << 20}, {"gib", 1 << 10}, {"mib", 1}, {"tb", 1 << 20}, {"gb", 1 << 10}, {"mb", 1}, {"t", 1 << 20}, {"g", 1 << 10}, {"m", 1}}

// parseMiB reads a size: a number of MiB, or one with a unit.
func parseMiB(text string) (int64, error) {
	number, unit := strings.ToLower(strings.ReplaceAll(text, " ", "")), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = rest, u.mib
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > 1<<40/unit {
		return 0, fmt.Errorf("%q is no size: use a number of MiB, or one with a unit (512MiB, 8GiB, 2TiB)", text)
	}
	return n * unit, nil
}

func parseCount(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no number", text)
	}
	return n, nil
}

// showMiB writes a size in the largest unit that needs no fraction.
func showMiB(n int64) string {
	for _, u := range []struct {
		name string
		mib  int64
	}{{"TiB", 1 << 20}, {"GiB", 1 << 10}} {
		if n != 0 && n%u.mib == 0 {
			return fmt.Sprintf("%d %s", n/u.mib, u.name)
		}
	}
	return fmt.Sprintf("%d MiB", n)
}

func showTime(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return t.Local().Format("2006-01-02 15:04")
}
