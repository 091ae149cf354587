package machine

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// flushLimit is how long a commit waits for a guest to write its page cache to its disk.
const flushLimit = 5 * time.Second

// flush has a running guest write what it holds back for its disk, so that a commit's disk has what its users see and diff
// tells of it. The machine runs on meanwhile, and a commit is whole without it: what stays in the page cache is in the
// commit's memory. So a guest that does not answer, or is slow, is not waited for any longer; and where the host's
// disk might become full by it, which stops a guest, it is left out.
func (m *Manager) flush(ctx context.Context, v *vm) {
	r, live := v.snapshot(), v.live()
	if r.State != string(StateRunning) || live.instance == nil {
		return
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(m.DataDir, &fs); err != nil || int64(fs.Bavail)*fs.Bsize < r.Config.MemSizeMiB<<20 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushLimit)
	defer cancel()
	ctx, release := whileRunning(ctx, live.instance)
	defer release()
	if err := live.agent.Sync(ctx); err != nil {
		m.Logger.Info("committed without waiting for the guest's page cache", "vm", r.ID, "error", err)
	}
}
