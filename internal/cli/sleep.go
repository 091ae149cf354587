package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"vers/api"
	"vers/internal/fault"
)

func (a *App) sleepCommand() *cobra.Command {
	var format formatFlags
	var after string
	cmd := &cobra.Command{
		Use: "sleep [vm|alias]", Short: "Put a VM to sleep: its state is on disk, its memory free",
		Long: `Put a running VM to sleep. Its memory, processes and disk are kept on disk and it takes no memory and no
CPU. Connections to it are cut. Whatever needs it wakes it, in some tenths of a second: exec, connect, copy,
logs, a tunnel, a commit, a branch, a request to one of its ports, and 'vers resume'. Looking at it ('vers
status', 'vers info') does not.

With --after it is not put to sleep now, but from now on whenever nobody has used it for that long: nobody
is connected to it, it does not compute and opens no connections.`,
		Example: `  vers sleep dev
  vers sleep dev --after 30m      # by itself, after half an hour without use
  vers sleep dev --after never`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("after") {
				return a.sleepAfter(cmd.Context(), optional(args), after, format)
			}
			return a.sleep(cmd.Context(), optional(args), format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	cmd.Flags().StringVar(&after, "after", "", "do it by itself after this time without use, for example 30m; never: no more")
	format.add(cmd)
	return cmd
}

func (a *App) sleep(ctx context.Context, typed string, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	t, err := a.target(ctx, typed)
	if err != nil {
		return err
	}
	err = func() error {
		defer a.Streams.progress("Putting VM '%s' to sleep", t.ID)()
		limited, cancel := limit(ctx, 5*startLimit, "putting the VM to sleep")
		defer cancel()
		return client.Sleep(limited, t.ID)
	}()
	if err != nil {
		return t.missing(err)
	}
	return a.show(mode, t.ID, stateResult{t.ID, "Sleeping"}, func() {
		a.usedHead(t)
		fmt.Fprintf(a.Streams.Out, "✓ VM '%s' sleeps; what needs it wakes it\n", t.ID)
	})
}

// termsResult is the JSON output of ttl and of sleep --after.
type termsResult struct {
	VMID              string     `json:"vm_id"`
	SleepAfterSeconds int64      `json:"sleep_after_seconds"` // 0: never
	ExpiresAt         *time.Time `json:"expires_at"`          // null: never
}

func (a *App) sleepAfter(ctx context.Context, typed, after string, format formatFlags) error {
	seconds, err := readTerm("--after", after)
	if err != nil {
		return err
	}
	return a.setTerms(ctx, typed, api.Terms{SleepAfterSeconds: &seconds}, format)
}

func (a *App) ttlCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "ttl [vm|alias] <time|never>", Short: "Say when a VM is to be deleted",
		Long: `Delete a VM that long from now, whatever it does then; 'never' takes that back. Its commits and the VMs
branched from it live on. 'vers info' shows when.`,
		Example: `  vers ttl 2h
  vers ttl dev 7d
  vers ttl dev never`,
		Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			seconds, err := readTerm("the time", args[len(args)-1])
			if err != nil {
				return err
			}
			return a.setTerms(cmd.Context(), optional(args[:len(args)-1]), api.Terms{TTLSeconds: &seconds}, format)
		},
		ValidArgsFunction: a.completeVMs,
	}
	format.add(cmd)
	return cmd
}

func (a *App) setTerms(ctx context.Context, typed string, terms api.Terms, format formatFlags) error {
	mode, client, err := a.begin(format)
	if err != nil {
		return err
	}
	t, err := a.target(ctx, typed)
	if err != nil {
		return err
	}
	limited, cancel := limit(ctx, listLimit, "changing the VM")
	defer cancel()
	if err := client.SetTerms(limited, t.ID, terms); err != nil {
		return t.missing(err)
	}
	meta, err := client.Metadata(limited, t.ID)
	if err != nil {
		return t.missing(err)
	}
	return a.show(mode, t.ID, termsResult{t.ID, meta.SleepAfterSeconds, meta.ExpiresAt}, func() {
		a.usedHead(t)
		if terms.SleepAfterSeconds != nil {
			fmt.Fprintf(a.Streams.Out, "✓ VM '%s' sleeps after: %s\n", t.ID, sleepsAfter(meta))
		}
		if terms.TTLSeconds != nil {
			fmt.Fprintf(a.Streams.Out, "✓ VM '%s' is deleted: %s\n", t.ID, expires(meta.ExpiresAt, "never"))
		}
	})
}

// sleepsAfter words when a VM falls asleep by itself.
func sleepsAfter(meta api.VMMetadata) string {
	if meta.SleepAfterSeconds == 0 {
		return "never by itself"
	}
	return (time.Duration(meta.SleepAfterSeconds) * time.Second).String() + " without use"
}

// expires words when a VM is deleted, and warns of it.
func expires(at *time.Time, never string) string {
	if at == nil {
		return never
	}
	left := time.Until(*at).Round(time.Second)
	if left <= 0 {
		return when(*at) + " (now)"
	}
	return fmt.Sprintf("%s (in %s)", when(*at), left)
}

// termsFlags are the terms of new VMs.
type termsFlags struct{ sleepAfter, ttl string }

func (f *termsFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.sleepAfter, "sleep-after", "", "let the VM fall asleep after this time without use, for example 30m; never: not even if the server says so")
	cmd.Flags().StringVar(&f.ttl, "ttl", "", "delete the VM after this time, for example 2h or 7d")
}

func (f termsFlags) read() (api.Terms, error) {
	var t api.Terms
	for _, flag := range []struct {
		name, text string
		to         **int64
	}{{"--sleep-after", f.sleepAfter, &t.SleepAfterSeconds}, {"--ttl", f.ttl, &t.TTLSeconds}} {
		if flag.text == "" {
			continue
		}
		seconds, err := readTerm(flag.name, flag.text)
		if err != nil {
			return t, err
		}
		*flag.to = &seconds
	}
	return t, nil
}

// readTerm reads a time in seconds; "never" is 0.
func readTerm(name, text string) (int64, error) {
	if text == "never" {
		return 0, nil
	}
	d, err := days(text)
	if err != nil || d < time.Second {
		return 0, fault.Invalidf("%s is %q: give a time such as 30m, 2h or 7d, or never", name, text)
	}
	return int64((d + time.Second - 1) / time.Second), nil
}
