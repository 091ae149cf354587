package machine

// PatchLimit is patchLimit.
const PatchLimit = patchLimit

// Booked gives the bytes of host memory that the ledger has given away, and to how many VMs.
func (m *Manager) Booked() (bytes int64, vms int) {
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	return m.ledger.used(), len(m.ledger.booked)
}

// UIDs gives the number of user ids in use.
func (m *Manager) UIDs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.uids)
}
