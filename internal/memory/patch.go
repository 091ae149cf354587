package memory

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Write puts the pages of a snapshot into size bytes of private memory at address in process pid. They become dirty
// pages of that process. Nothing may run in that memory meanwhile. It needs the right to trace the process.
func Write(pid int, address uintptr, size int64, s *Snapshot) error {
	if err := s.check(size); err != nil {
		return err
	}
	if err := checkMapping(pid, address, size); err != nil {
		return err
	}
	zeroes := make([]byte, 1<<20)
	for _, r := range s.classified() {
		at := address + uintptr(r.page*PageSize)
		if r.data != nil {
			if err := writeProcess(pid, at, r.data); err != nil {
				return err
			}
			continue
		}
		for left := r.count * PageSize; left > 0; {
			n := min(left, int64(len(zeroes)))
			if err := writeProcess(pid, at, zeroes[:n]); err != nil {
				return err
			}
			at, left = at+uintptr(n), left-n
		}
	}
	return nil
}

func writeProcess(pid int, at uintptr, data []byte) error {
	for len(data) > 0 {
		local := []unix.Iovec{{Base: &data[0]}}
		local[0].SetLen(len(data))
		n, err := unix.ProcessVMWritev(pid, local, []unix.RemoteIovec{{Base: at, Len: len(data)}}, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return fmt.Errorf("write %d bytes to the memory of process %d: %w", len(data), pid, err)
		}
		at, data = at+uintptr(n), data[n:]
	}
	return nil
}
