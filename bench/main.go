// bench measures what vers promises, on real VMs, beside what QEMU itself needs for the same VM in the same run.
//
//	go run ./bench [-quick] [-only copy,tree] [-out bench/results]
//
// It writes bench/results/latest.json and latest.md. Numbers of different machines cannot be compared; ratios within one
// run can.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"vers/internal/qemu"
)

func main() {
	if qemu.IsLauncher(os.Args) {
		qemu.LauncherMain()
	}
	quick := flag.Bool("quick", false, "about three minutes: fewer repetitions, no 1 GB guest")
	out := flag.String("out", filepath.Join("bench", "results"), "where the results go")
	only := flag.String("only", "", "run only the scenarios with these names, with commas between; results of others stay")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *quick, *out, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, quick bool, out, only string) (err error) {
	lab, err := newLab(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := lab.close(); err == nil {
			err = closeErr
		}
	}()
	report := newReport(lab)
	for _, s := range scenarios(quick) {
		if only != "" && !slices.Contains(strings.Split(only, ","), s.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s …\n", s.name)
		report.begin(s.name)
		if err := s.run(ctx, lab, report); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := report.write(out, scenarios(quick)); err != nil {
			return err
		}
		if err := lab.deleteVMs(ctx); err != nil {
			return err
		}
	}
	return nil
}
