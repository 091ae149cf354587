package memory

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vers/internal/fault"
)

// Flat is a flat memory file in the making: a guest's whole memory as one sparse file that QEMU maps privately. Until
// Finish it has a temporary name; from then on nobody may ever write to it again, since running VMs map it.
//
//	flat, err := NewFlat(ctx, path, base, size)
//	defer flat.Abort()
//	flat.Apply(snapshot)
//	flat.Finish()
type Flat struct {
	path string   // when finished
	temp string   // until then
	file *os.File // nil when finished or aborted
	size int64
}

// NewFlat begins the file path with the content of another flat file, base, or with zeroes if base is "". size is the
// guest's memory in bytes. base is only read. Where the file system can share blocks, nothing is copied.
//
// Errors: fault.Conflict if path exists, fault.Exhausted if the disk is full. On error nothing is left behind.
func NewFlat(ctx context.Context, path, base string, size int64) (_ *Flat, err error) {
	if size <= 0 || size%PageSize != 0 {
		return nil, fmt.Errorf("flat file %s: %d bytes of memory are not whole pages", path, size)
	}
	if _, err := os.Lstat(path); err == nil {
		return nil, fault.Conflictf("%s exists already; it is never overwritten", path)
	}
	file, err := createTemp(path)
	if err != nil {
		return nil, err
	}
	f := &Flat{path: path, temp: file.Name(), file: file, size: size}
	defer func() {
		if err != nil {
			f.Abort()
		}
	}()
	if base != "" {
		if err := f.begin(ctx, base); err != nil {
			return nil, err
		}
	}
	if err := file.Truncate(size); err != nil {
		return nil, writeError(path, 0, err)
	}
	return f, nil
}

// begin makes the new file equal to base.
func (f *Flat) begin(ctx context.Context, base string) error {
	from, err := os.Open(base)
	if err != nil {
		return fmt.Errorf("base of flat file %s: %w", f.path, err)
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return fmt.Errorf("base of flat file %s: %w", f.path, err)
	}
	if info.Size() != f.size {
		return fmt.Errorf("base %s has %d bytes, flat file %s is to have %d: they belong to different machines", base, info.Size(), f.path, f.size)
	}
	err = unix.IoctlFileClone(int(f.file.Fd()), int(from.Fd()))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return writeError(f.path, 0, err)
	}
	// Whatever the reason (no reflinks here, another file system, too old a kernel): copy.
	if err := f.file.Truncate(f.size); err != nil {
		return writeError(f.path, 0, err)
	}
	return f.copyData(ctx, from)
}

// Apply writes the pages of a snapshot. Zero pages become holes where there was data.
// Errors: fault.Exhausted if the disk is full. After any error the caller must Abort.
func (f *Flat) Apply(s *Snapshot) error {
	if f.file == nil {
		return fmt.Errorf("flat file %s: it is finished or aborted", f.path)
	}
	if err := s.check(f.size); err != nil {
		return fmt.Errorf("flat file %s: %w", f.path, err)
	}
	runs := s.classified()
	var data, zero []span
	for _, r := range runs {
		if r.data == nil {
			zero = appendSpan(zero, r.page, r.count)
		} else {
			data = appendSpan(data, r.page, r.count)
		}
	}
	if err := f.prepare(data, zero); err != nil {
		return writeError(f.path, s.Bytes(), err)
	}
	for _, r := range runs {
		if r.data == nil {
			continue
		}
		if _, err := f.file.WriteAt(r.data, r.page*PageSize); err != nil {
			return writeError(f.path, s.Bytes(), err)
		}
	}
	return nil
}

// deltaTarget is a flat file that a delta is applied to.
type deltaTarget struct {
	*Flat
	need int64
}

func (f *Flat) applyDelta(ctx context.Context, delta string) error {
	_, err := readDeltaFile(ctx, delta, &deltaTarget{Flat: f})
	return err
}

func (t *deltaTarget) begin(info DeltaInfo, runs []fileRun) error {
	if info.RAMBytes != t.size {
		return fmt.Errorf("it is for %d bytes of memory, the flat file %s has %d", info.RAMBytes, t.path, t.size)
	}
	t.need = info.DataPages * PageSize
	var data, zero []span
	for _, r := range runs {
		if r.zero {
			zero = appendSpan(zero, r.page, r.count)
		} else {
			data = appendSpan(data, r.page, r.count)
		}
	}
	if err := t.prepare(data, zero); err != nil {
		return writeError(t.path, t.need, err)
	}
	return nil
}

func (t *deltaTarget) putData(page int64, data []byte) error {
	if _, err := t.file.WriteAt(data, page*PageSize); err != nil {
		return writeError(t.path, t.need, err)
	}
	return nil
}

// span is a range of bytes of a file.
type span struct{ start, end int64 }

func appendSpan(list []span, page, count int64) []span {
	start, end := page*PageSize, (page+count)*PageSize
	if n := len(list); n > 0 && list[n-1].end == start {
		list[n-1].end = end
		return list
	}
	return append(list, span{start, end})
}

// reserveFrom is the length from which space for a range is reserved before it is written: with blocks allocated in
// one go, writing is faster and a full disk is known early. For less, the call costs more than it saves.
const reserveFrom = 256 << 10

// reserveAll reserves space for spans of data. Small gaps between longer spans are reserved with them, since a call for
// each would take longer than the copy; they go on to read as zeroes and to count as holes.
func reserveAll(f *os.File, spans []span) error {
	for i := 0; i < len(spans); i++ {
		s := spans[i]
		for i+1 < len(spans) {
			next := spans[i+1]
			if gap := next.start - s.end; gap*8 > min(s.end-s.start, reserveFrom)+min(next.end-next.start, reserveFrom) {
				break
			}
			s.end, i = next.end, i+1
		}
		if s.end-s.start < reserveFrom {
			continue
		}
		if err := reserve(f, s.start, s.end-s.start); err != nil {
			return err
		}
	}
	return nil
}

// prepare reserves space for data and makes the zero ranges read as zero, by holes where there is data.
func (f *Flat) prepare(data, zero []span) error {
	if err := reserveAll(f.file, data); err != nil {
		return err
	}
	next := int64(-1) // where data begins behind the last range looked at
	for _, s := range zero {
		if next >= s.end {
			continue
		}
		start, _, ok, err := nextData(f.file, s.start)
		if err != nil || !ok {
			return err
		}
		if next = start; next >= s.end {
			continue
		}
		if err := f.punch(next&^(PageSize-1), s.end); err != nil {
			return err
		}
	}
	return nil
}

func (f *Flat) punch(start, end int64) error {
	for {
		err := unix.Fallocate(int(f.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, end-start)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			for ; start < end; start += PageSize {
				if _, err := f.file.WriteAt(zeroPage[:], start); err != nil {
					return err
				}
			}
			return nil
		}
		return err
	}
}

// Path is where the file is now: under its temporary name until Finish, then where NewFlat was told. It can be opened
// and mapped early, and stays the same file, as long as nobody looks at its content before Finish.
func (f *Flat) Path() string {
	if f.file != nil {
		return f.temp
	}
	return f.path
}

// Sync brings the content to stable storage. A flat file that was not synced is only good until the host restarts.
func (f *Flat) Sync() error {
	if f.file == nil {
		return fmt.Errorf("sync flat file %s: it is finished or aborted", f.path)
	}
	if err := f.file.Sync(); err != nil {
		return writeError(f.path, 0, err)
	}
	return nil
}

// Finish gives the file its name. Errors: fault.Conflict if there is one with that name; the caller must Abort then.
func (f *Flat) Finish() error {
	if f.file == nil {
		return fmt.Errorf("finish flat file %s: it is finished or aborted", f.path)
	}
	if err := publish(f.temp, f.path); err != nil {
		return err
	}
	err := f.file.Close()
	f.file = nil
	if err != nil {
		return writeError(f.path, 0, err)
	}
	return nil
}

// Abort removes the file unless it is finished. Idempotent; safe to defer.
func (f *Flat) Abort() {
	if f == nil || f.file == nil {
		return
	}
	_ = f.file.Close()
	f.file = nil
	_ = os.Remove(f.temp)
}
