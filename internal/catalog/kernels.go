package catalog

import "context"

// KernelUse is a VM or a commit that needs a kernel.
type KernelUse struct {
	Kind   string // "VM" or "commit"
	ID     string
	Name   string // of a commit
	Org    string // name
	Kernel string
}

// KernelUses lists what users have that needs its kernel: VMs that are not dead and commits that can be restored. States that
// versd keeps by itself (templates and the like) are not in it, they can be made again; see DropKernelStates.
func (r *records) KernelUses(ctx context.Context) ([]KernelUse, error) {
	return list(ctx, r.read, "uses of kernels", func(row scan) (u KernelUse, err error) {
		return u, row(&u.Kind, &u.ID, &u.Name, &u.Org, &u.Kernel)
	}, `SELECT 'VM', vm_id, '', o.name, coalesce(json_extract(config, '$.kernel_name'), '')
			FROM vms JOIN organisations AS o USING (org_id) WHERE state <> 'dead'
		UNION ALL
		SELECT 'commit', commit_id, c.name, o.name, coalesce(json_extract(manifest, '$.config.kernel_name'), '')
			FROM commits AS c JOIN organisations AS o USING (org_id) WHERE `+visible)
}

// DropKernelStates hides the states kept by versd itself that need a kernel, so that nothing is started from them any more,
// and gives their number.
func (r *records) DropKernelStates(ctx context.Context, kernel string) (int, error) {
	ids, err := list(ctx, r.read, "states of a kernel", func(row scan) (id string, err error) { return id, row(&id) },
		`SELECT commit_id FROM commits WHERE template_key IS NOT NULL AND deleted = 0 AND json_extract(manifest, '$.config.kernel_name') = ?`, kernel)
	for _, id := range ids {
		if err := r.MarkCommitDeleted(ctx, id); err != nil {
			return 0, err
		}
	}
	return len(ids), err
}
