package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"vers/internal/fault"
)

type upgradeOptions struct {
	checkOnly, prerelease, skipChecksum, yes bool
	format                                   formatFlags
}

func (a *App) upgradeCommand() *cobra.Command {
	var o upgradeOptions
	cmd := &cobra.Command{
		Use: "upgrade", Short: "Replace this program by the newest release",
		Long: `Replace this program by the newest release at the address VERS_RELEASE_URL. Nothing is ever looked up
elsewhere. There, 'latest' (with --prerelease: 'prerelease') holds a version, and the folder of that
version the programs, vers-<os>-<arch>, each with its SHA-256 in a file with the suffix .sha256.`,
		Example: "  VERS_RELEASE_URL=https://releases.example.org/vers vers upgrade --check-only",
		Args:    arguments(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.upgrade(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.checkOnly, "check-only", false, "only say whether there is a newer release")
	f.BoolVar(&o.prerelease, "prerelease", false, "take releases that are not final too")
	f.BoolVar(&o.skipChecksum, "skip-checksum", false, "do not check the SHA-256")
	f.BoolVarP(&o.yes, "yes", "y", false, "ask nothing")
	o.format.add(cmd)
	return cmd
}

// upgradeResult is the JSON output of upgrade.
type upgradeResult struct {
	Current  string `json:"current"`
	Newest   string `json:"newest"`
	Upgraded bool   `json:"upgraded"`
}

var releaseVersion = regexp.MustCompile(`^v?[0-9]+(\.[0-9]+)*[0-9A-Za-z.+-]*$`)

func (a *App) upgrade(ctx context.Context, o upgradeOptions) error {
	mode, err := o.format.mode()
	if err != nil {
		return err
	}
	base := strings.TrimRight(a.env("VERS_RELEASE_URL"), "/")
	switch {
	case base == "":
		return fault.Invalidf("no release address is configured: set VERS_RELEASE_URL to where your releases are, or build from source with 'make install'")
	case !strings.HasPrefix(base, "http://") && !strings.HasPrefix(base, "https://"):
		return fault.Invalidf("VERS_RELEASE_URL is %q, but must start with http:// or https://", base)
	}
	channel := "latest"
	if o.prerelease {
		channel = "prerelease"
	}
	limited, cancel := limit(ctx, listLimit, "asking for the newest release")
	defer cancel()
	text, err := fetch(limited, base+"/"+channel, 4096)
	if err != nil {
		return err
	}
	result := upgradeResult{Current: a.Build.Version, Newest: strings.TrimSpace(string(text))}
	if !releaseVersion.MatchString(result.Newest) {
		return fmt.Errorf("%s/%s holds %.60q, which is no version", base, channel, result.Newest)
	}
	newer := strings.TrimPrefix(result.Newest, "v") != strings.TrimPrefix(result.Current, "v")
	if newer && !o.checkOnly {
		if err := a.replaceProgram(ctx, base, result.Newest, o); err != nil {
			return err
		}
		result.Upgraded = true
	}
	return a.show(mode, result.Newest, result, func() {
		switch {
		case result.Upgraded:
			a.say("✓ vers %s replaced %s", result.Newest, result.Current)()
		case newer:
			a.say("vers %s is there; this is %s. 'vers upgrade' takes it", result.Newest, result.Current)()
		default:
			a.say("vers %s is the newest release", result.Current)()
		}
	})
}

// replaceProgram loads a release and puts it in the place of the running program.
func (a *App) replaceProgram(ctx context.Context, base, version string, o upgradeOptions) error {
	if a.Build.Version == "" || strings.HasPrefix(a.Build.Version, "dev") {
		return fault.Invalidf("this is a development build (%s); it is not replaced", a.Build.Version)
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		return err
	}
	if a.Streams.InTTY && a.Streams.ErrTTY && !o.yes {
		answer, err := a.Streams.ask(fmt.Sprintf("Replace %s by version %s? [y/N]: ", program, version))
		if err != nil {
			return err
		}
		if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
			return errDeclined
		}
	}
	name := fmt.Sprintf("vers-%s-%s", runtime.GOOS, runtime.GOARCH)
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	address := base + "/" + version + "/" + name
	defer a.Streams.progress("Loading %s", address)()
	ctx, cancel := limit(ctx, commitLimit, "loading the release")
	defer cancel()
	data, err := fetch(ctx, address, 1<<30)
	if err != nil {
		return err
	}
	if !o.skipChecksum {
		sum, err := fetch(ctx, address+".sha256", 4096)
		if err != nil {
			return fmt.Errorf("%w (--skip-checksum goes on without)", err)
		}
		want, _, _ := bytes.Cut(bytes.TrimSpace(sum), []byte(" "))
		got := sha256.Sum256(data)
		if !strings.EqualFold(string(want), hex.EncodeToString(got[:])) {
			return fmt.Errorf("the SHA-256 of %s is %x, but %s.sha256 says %.64s: nothing was changed", address, got, address, want)
		}
	}
	return swap(program, data)
}

// swap puts a program in the place of another, which comes back if that fails.
func swap(program string, data []byte) (err error) {
	fresh, backup := program+".new", program+".old"
	if err := os.WriteFile(fresh, data, 0o755); err != nil {
		return fmt.Errorf("write the new program: %w", err)
	}
	defer os.Remove(fresh) //nolint:errcheck // it has moved if all went well
	if err := os.Rename(program, backup); err != nil {
		return fmt.Errorf("put the old program aside: %w", err)
	}
	if err := os.Rename(fresh, program); err != nil {
		return errors.Join(fmt.Errorf("put the new program in its place: %w", err), os.Rename(backup, program))
	}
	_ = os.Remove(backup) // Windows cannot remove a program that runs
	return nil
}

// fetch loads at most most bytes.
func fetch(ctx context.Context, address string, most int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fault.Invalidf("%w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", address, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, fault.NotFoundf("there is no %s", address)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("load %s: %s", address, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s is larger than %d bytes", address, most)
	}
	return data, err
}
