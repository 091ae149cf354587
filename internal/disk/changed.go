package disk

import (
	"os"
	"slices"
)

// Range is a part of a disk, in bytes.
type Range struct{ Start, End int64 }

// maxRanges bounds what Changed gives; further changes are taken together into the last range.
const maxRanges = 1 << 20

// Changed gives the ranges of two disks, ascending, outside of which they are the same. It compares where the data is, not
// the data: what both take from the same file is the same. Disks of one lineage share their lower layers, so that only the
// tables of the layers above those count. Inside of a range, contents may be equal all the same.
func Changed(a, b *Reader) ([]Range, error) {
	whole := []Range{{0, max(a.size, b.size)}}
	common, err := commonFiles(a, b)
	if err != nil || common == 0 {
		return whole, err
	}
	var ranges []Range
	add := func(start, end int64) {
		switch last := len(ranges) - 1; {
		case last >= 0 && (ranges[last].End == start || len(ranges) == maxRanges):
			ranges[last].End = end
		default:
			ranges = append(ranges, Range{start, end})
		}
	}
	for _, index := range changedTables(a, b, common) {
		if err := compareTables(a, b, index, common, add); err != nil {
			return nil, err
		}
	}
	if small := min(a.size, b.size); small < whole[0].End {
		ranges = append(slices.DeleteFunc(ranges, func(r Range) bool { return r.Start >= small }), Range{small, whole[0].End})
	}
	return ranges, nil
}

// commonFiles counts the files that two chains share from the bottom.
func commonFiles(a, b *Reader) (int, error) {
	for i := range min(len(a.files), len(b.files)) {
		x, err := a.files[i].Stat()
		if err != nil {
			return 0, err
		}
		y, err := b.files[i].Stat()
		if err != nil {
			return 0, err
		}
		if !os.SameFile(x, y) {
			return i, nil
		}
	}
	return min(len(a.files), len(b.files)), nil
}

// changedTables gives the indexes of the L2 tables that layers above the common files have.
func changedTables(a, b *Reader, common int) []int64 {
	var indexes []int64
	for _, r := range []*Reader{a, b} {
		for _, layer := range r.layers[common-1:] {
			for i, offset := range layer.l1 {
				if offset != 0 {
					indexes = append(indexes, int64(i))
				}
			}
		}
		slices.Sort(indexes)
		indexes = slices.Compact(indexes)
	}
	return indexes
}

func compareTables(a, b *Reader, index int64, common int, add func(start, end int64)) error {
	x, err := a.table(index)
	if err != nil {
		return err
	}
	y, err := b.table(index)
	if err != nil {
		return err
	}
	if x == nil {
		x = &table{}
	}
	if y == nil {
		y = &table{}
	}
	for i := range x {
		shared := x[i] == y[i] && x[i].file() < common
		zeroes := x[i].file() > 0 && y[i].file() > 0 && x[i].cluster() == 0 && y[i].cluster() == 0
		if !shared && !zeroes {
			start := index*tableSpan + int64(i)*clusterSize
			add(start, start+clusterSize)
		}
	}
	return nil
}
