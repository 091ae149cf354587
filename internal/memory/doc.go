// Package memory takes the dirty pages of a running guest out of its process, stores them as deltas and builds the
// flat files that restored guests map.
package memory
