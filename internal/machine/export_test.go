package machine

import "time"

// MaxGenerations is maxGenerations.
const MaxGenerations = maxGenerations

// PatchLimit is patchLimit.
const PatchLimit = patchLimit

// Booked gives the bytes of host memory that the ledger has given away, and to how many VMs.
func (m *Manager) Booked() (bytes int64, vms int) {
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	return m.ledger.used(), len(m.ledger.booked)
}

// Tend lets the caretaker look at all VMs as if it were that time, and waits for what it does then.
func (m *Manager) Tend(now time.Time) {
	m.tend(now)
	for tending := true; tending; time.Sleep(time.Millisecond) {
		tending = false
		m.mu.Lock()
		for _, v := range m.vms {
			v.mu.Lock()
			tending = tending || v.tended
			v.mu.Unlock()
		}
		m.mu.Unlock()
	}
}

// Inside gives the number of connections into a VM's guest.
func (m *Manager) Inside(vmID string) int {
	m.mu.Lock()
	v := m.vms[vmID]
	m.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.gate.inside
}

// UIDs gives the number of user ids in use.
func (m *Manager) UIDs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.uids)
}
