package catalog

import (
	"context"
	"encoding/json"
	"fmt"
)

const vmColumns = `vm_id, org_id, owner_id, state, coalesce(reason, ''), created_at, labels, config, coalesce(boot_env, ''),
	coalesce(parent_commit, ''), coalesce(grandparent_vm, ''), coalesce(memory_base, ''), coalesce(layer_id, ''),
	uid, coalesce(process, ''), coalesce(spec, ''), ssh_key, ssh_host_key, coalesce(build_id, ''),
	sleep_after, expires_at, slept_at, woken_at`

func readVM(row scan) (VM, error) {
	var vm VM
	var labels, config, env, process, spec string
	err := row(&vm.ID, &vm.OrgID, &vm.OwnerID, &vm.State, &vm.Reason, timeColumn{&vm.CreatedAt}, &labels, &config, &env,
		&vm.ParentCommit, &vm.GrandparentVM, &vm.MemoryBase, &vm.LayerID,
		&vm.UID, &process, &spec, &vm.SSHKey, &vm.SSHHostKey, &vm.BuildID,
		&vm.SleepAfter, optionalTimeColumn{&vm.ExpiresAt}, optionalTimeColumn{&vm.SleptAt}, optionalTimeColumn{&vm.WokenAt})
	if err != nil {
		return VM{}, err
	}
	if err := json.Unmarshal([]byte(labels), &vm.Labels); err != nil {
		return VM{}, fmt.Errorf("labels of VM %s: %w", vm.ID, err)
	}
	if err := json.Unmarshal([]byte(config), &vm.Config); err != nil {
		return VM{}, fmt.Errorf("config of VM %s: %w", vm.ID, err)
	}
	if env != "" {
		if err := json.Unmarshal([]byte(env), &vm.BootEnv); err != nil {
			return VM{}, fmt.Errorf("environment of VM %s: %w", vm.ID, err)
		}
	}
	vm.Process, vm.Spec = rawJSON(process), rawJSON(spec)
	return vm, nil
}

func rawJSON(s string) json.RawMessage {
	if s == "" {
		return nil
	}
	return json.RawMessage(s)
}

func labelText(labels map[string]string) (string, error) {
	if labels == nil {
		labels = map[string]string{}
	}
	text, err := json.Marshal(labels)
	return string(text), err
}

// vmValues gives the columns that may change, in the order of InsertVM and UpdateVM.
func vmValues(vm VM) ([]any, error) {
	labels, err := labelText(vm.Labels)
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(vm.Config)
	if err != nil {
		return nil, err
	}
	var env []byte
	if len(vm.BootEnv) > 0 {
		if env, err = json.Marshal(vm.BootEnv); err != nil {
			return nil, err
		}
	}
	return []any{vm.State, nullable(vm.Reason), labels, string(config), nullable(string(env)), nullable(vm.ParentCommit),
		nullable(vm.GrandparentVM), nullable(vm.MemoryBase), nullable(vm.LayerID), vm.UID,
		nullable(string(vm.Process)), nullable(string(vm.Spec)), vm.SSHKey, vm.SSHHostKey, nullable(vm.BuildID),
		vm.SleepAfter, optionalTimeText(vm.ExpiresAt), optionalTimeText(vm.SleptAt), optionalTimeText(vm.WokenAt)}, nil
}

// InsertVM adds a VM. A taken id or user id is fault.Conflict.
func (r *records) InsertVM(ctx context.Context, vm VM) error {
	values, err := vmValues(vm)
	if err != nil {
		return err
	}
	return insert(ctx, r.write, "VM "+vm.ID, `INSERT INTO vms (state, reason, labels, config, boot_env, parent_commit,
		grandparent_vm, memory_base, layer_id, uid, process, spec, ssh_key, ssh_host_key, build_id,
		sleep_after, expires_at, slept_at, woken_at, vm_id, org_id, owner_id, created_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		append(values, vm.ID, vm.OrgID, vm.OwnerID, timeText(vm.CreatedAt))...)
}

// UpdateVM writes everything but id, organisation, owner and time of creation.
func (r *records) UpdateVM(ctx context.Context, vm VM) error {
	values, err := vmValues(vm)
	if err != nil {
		return err
	}
	return change(ctx, r.write, "VM "+vm.ID, `UPDATE vms SET state = ?, reason = ?, labels = ?, config = ?, boot_env = ?,
		parent_commit = ?, grandparent_vm = ?, memory_base = ?, layer_id = ?, uid = ?, process = ?, spec = ?,
		ssh_key = ?, ssh_host_key = ?, build_id = ?, sleep_after = ?, expires_at = ?, slept_at = ?, woken_at = ? WHERE vm_id = ?`, append(values, vm.ID)...)
}

// SetVMState writes the state and its reason only.
func (r *records) SetVMState(ctx context.Context, id, state, reason string) error {
	return change(ctx, r.write, "VM "+id, `UPDATE vms SET state = ?, reason = ? WHERE vm_id = ?`, state, nullable(reason), id)
}

// SetVMLabels replaces the labels only.
func (r *records) SetVMLabels(ctx context.Context, id string, labels map[string]string) error {
	text, err := labelText(labels)
	if err != nil {
		return err
	}
	return change(ctx, r.write, "VM "+id, `UPDATE vms SET labels = ? WHERE vm_id = ?`, text, id)
}

// DeleteVM removes a VM.
func (r *records) DeleteVM(ctx context.Context, id string) error {
	return change(ctx, r.write, "VM "+id, `DELETE FROM vms WHERE vm_id = ?`, id)
}

// VM gives one VM, whatever its organisation and state.
func (r *records) VM(ctx context.Context, id string) (VM, error) {
	return one(ctx, r.read, "VM "+id, readVM, `SELECT `+vmColumns+` FROM vms WHERE vm_id = ?`, id)
}

// VMs lists the VMs of an organisation in every state, newest first.
func (r *records) VMs(ctx context.Context, orgID string) ([]VM, error) {
	return list(ctx, r.read, "VMs", readVM,
		`SELECT `+vmColumns+` FROM vms WHERE org_id = ? ORDER BY created_at DESC, rowid DESC`, orgID)
}

// AllVMs lists the VMs of all organisations in every state, oldest first.
func (r *records) AllVMs(ctx context.Context) ([]VM, error) {
	return list(ctx, r.read, "VMs", readVM, `SELECT `+vmColumns+` FROM vms ORDER BY created_at, rowid`)
}

// VMsOfCommit lists the VMs that were started from a commit or map its memory.
func (r *records) VMsOfCommit(ctx context.Context, commitID string) ([]VM, error) {
	return list(ctx, r.read, "VMs", readVM, `SELECT `+vmColumns+` FROM vms
		WHERE parent_commit = ?1 OR memory_base = ?1 ORDER BY created_at, rowid`, commitID)
}
