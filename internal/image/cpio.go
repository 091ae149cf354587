package image

import (
	"fmt"
	"io"
	"os"
)

// File types and the character device of a cpio entry's mode (cpio(5)).
const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
	cpioChar = 0o020000
)

// cpioWriter writes a "newc" archive, the format the kernel unpacks as initramfs. Owners are root and times zero, so
// the same entries always give the same bytes.
type cpioWriter struct {
	w     io.Writer
	inode uint32
	n     int64 // bytes written, for padding
	err   error
}

func newCpioWriter(w io.Writer) *cpioWriter { return &cpioWriter{w: w} }

func (c *cpioWriter) write(p []byte) {
	if c.err == nil {
		var n int
		n, c.err = c.w.Write(p)
		c.n += int64(n)
	}
}

func (c *cpioWriter) pad() {
	if rest := c.n % 4; rest != 0 {
		c.write(make([]byte, 4-rest))
	}
}

// header writes the 110-byte header and the name: all numbers are 8 hexadecimal digits.
func (c *cpioWriter) header(name string, mode uint32, size int64, major, minor uint32) {
	c.inode++
	links := uint32(1)
	if mode&cpioDir == cpioDir {
		links = 2
	}
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, len(name)+1, 0, name))
	c.pad()
}

// Dir adds a directory. Parents must be added first.
func (c *cpioWriter) Dir(name string, perm uint32) { c.header(name, cpioDir|perm, 0, 0, 0) }

// Char adds a character device node.
func (c *cpioWriter) Char(name string, perm, major, minor uint32) {
	c.header(name, cpioChar|perm, 0, major, minor)
}

// File adds a regular file.
func (c *cpioWriter) File(name string, perm uint32, data []byte) {
	c.header(name, cpioFile|perm, int64(len(data)), 0, 0)
	c.write(data)
	c.pad()
}

// Copy adds a regular file with the content of the file at path.
func (c *cpioWriter) Copy(name string, perm uint32, path string) {
	data, err := os.ReadFile(path)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.File(name, perm, data)
}

// Close writes the end mark and gives the first error of all calls.
func (c *cpioWriter) Close() error {
	c.inode = 0xffffffff // wraps to 0
	c.header("TRAILER!!!", 0, 0, 0, 0)
	return c.err
}
