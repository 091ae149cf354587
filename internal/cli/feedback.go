package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vers/internal/cli/local"
	"vers/internal/fault"
)

// feedback is one note of the user.
type feedback struct {
	At      time.Time `json:"at"`
	Text    string    `json:"text"`
	Version string    `json:"version"`
}

func (a *App) feedbackJournal() local.Journal[feedback] {
	return local.Journal[feedback]{Path: filepath.Join(a.Home, ".vers", "feedback.jsonl")}
}

func (a *App) feedbackCommand() *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use: "feedback <text>", Short: "Write down what you think of vers",
		Long: `Write a note into ~/.vers/feedback.jsonl. It stays on this machine, unless VERS_FEEDBACK_ENDPOINT names an
address: then it is posted there too.`,
		Example: "  vers feedback \"tree is what I needed\"\n  vers feedback list",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("write the text after the command")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.feedback(cmd.Context(), strings.Join(args, " "), format)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	format.add(cmd)
	cmd.AddCommand(a.feedbackListCommand())
	return cmd
}

func (a *App) feedback(ctx context.Context, text string, format formatFlags) error {
	mode, err := format.mode()
	if err != nil {
		return err
	}
	if strings.TrimSpace(text) == "" {
		return fault.Invalidf("the text is empty")
	}
	entry := feedback{At: time.Now().UTC(), Text: text, Version: a.Build.Version}
	if err := a.feedbackJournal().Add(ctx, entry); err != nil {
		return err
	}
	if endpoint := a.env("VERS_FEEDBACK_ENDPOINT"); endpoint != "" {
		if err := postFeedback(ctx, endpoint, entry); err != nil {
			a.warn("the note is kept, but was not posted: %v", err)
		}
	}
	return a.show(mode, entry.Text, entry, a.say("✓ Noted in ~/.vers/feedback.jsonl"))
}

func postFeedback(ctx context.Context, endpoint string, entry feedback) error {
	body, err := json.Marshal(entry)
	if err != nil {
		return err
	}
	ctx, cancel := limit(ctx, checkLimit, "posting the note")
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s answered %s", endpoint, resp.Status)
	}
	return nil
}

func (a *App) feedbackListCommand() *cobra.Command {
	var format formatFlags
	var pages pageFlags
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the notes",
		Example: "  vers feedback list",
		Args:    arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			mode, err := format.mode()
			if err != nil {
				return err
			}
			all, err := a.feedbackJournal().All()
			if err != nil {
				return err
			}
			return listing[feedback]{
				name:   func(f feedback) string { return clean(f.Text) },
				header: []string{"AT", "TEXT"},
				row:    func(f feedback) []string { return []string{when(f.At), f.Text} },
				empty:  "No notes.",
			}.print(a, mode, pages, all)
		},
	}
	format.addQuiet(cmd, "print the texts only")
	pages.add(cmd)
	return cmd
}

// telemetryCommand answers those who look for a switch.
func (a *App) telemetryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "telemetry [enable|disable|status]", Short: "Say that there is no telemetry",
		Long:      "vers sends nothing to anybody but the server you choose; there is nothing to enable or disable.",
		Example:   "  vers telemetry status",
		Args:      arguments(cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs)),
		ValidArgs: []string{"enable", "disable", "status"},
		RunE: func(*cobra.Command, []string) error {
			a.say("vers has no telemetry: nothing is collected, nothing is sent.")()
			return nil
		},
	}
}
