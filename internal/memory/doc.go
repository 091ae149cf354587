// Package memory takes the dirty pages of a running guest out of its process, stores them as deltas and builds the
// flat files that restored guests map.
//
//	Prepare ── pause ── Copy ── resume ──► Snapshot ──► WriteDelta   the commit's own pages, kept
//	                                          └───────► Flat.Apply   the whole memory, a cache, mapped by children
//
// A guest's memory is a private mapping: anonymous for a VM that booted, of a flat file for one that was restored. A page
// is dirty when it is the process's own, which the kernel's page map tells at any time: nothing is tracked while the
// guest runs, and nothing must be reset. The price: whatever was ever written stays dirty for the life of the process,
// and every snapshot of it is relative to the same base.
//
// Page data is kept outside the Go heap, and given back by Release.
package memory
