package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// Labels of containers that this package makes: whose they are.
const (
	labelMachine = "dev.vers.machine"
	labelProcess = "dev.vers.process" // boot ID, process ID, its start
)

func ownLabels() map[string]string {
	return map[string]string{labelMachine: machineID(), labelProcess: processMark(os.Getpid())}
}

func machineID() string {
	for _, path := range []string{"/etc/machine-id", "/etc/hostname"} {
		if data, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(data))) > 0 {
			return strings.TrimSpace(string(data))
		}
	}
	return "unknown"
}

// processMark names a process for as long as it lives; "" if there is none with this number.
func processMark(pid int) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	stat, statErr := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil || statErr != nil {
		return ""
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return ""
	}
	return fmt.Sprintf("%s/%d/%s", strings.TrimSpace(string(boot)), pid, fields[19])
}

// Sweep removes containers whose process on this machine has ended.
func (e *Engine) Sweep(ctx context.Context) error {
	list, err := e.api.ContainerList(ctx, client.ContainerListOptions{
		All: true, Filters: make(client.Filters).Add("label", labelMachine+"="+machineID()),
	})
	if err != nil {
		return kindOf(err, "look for what killed builds left")
	}
	var errs []error
	for _, found := range list.Items {
		mark := found.Labels[labelProcess]
		parts := strings.Split(mark, "/")
		if len(parts) != 3 {
			continue
		}
		if pid, err := strconv.Atoi(parts[1]); err == nil && processMark(pid) == mark {
			continue // it lives
		}
		errs = append(errs, e.remove(found.ID))
	}
	return errors.Join(errs...)
}

// remove ends and removes a container, whatever became of the context it was made in. It returns when it is gone.
func (e *Engine) remove(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		_, err := e.api.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		switch {
		case err == nil || errdefs.IsNotFound(err):
			return nil
		case !errdefs.IsConflict(err) || ctx.Err() != nil:
			return kindOf(err, "remove container %s", id)
		}
		// Somebody is removing it already; there is no event to wait for that could not be missed.
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// removeSteps ends the steps of a cancelled build. The daemon does that too, but does not say when it has.
func (e *Engine) removeSteps(ids []string) {
	for _, id := range ids {
		_ = e.remove(id) // one that has gone is no error
	}
}
