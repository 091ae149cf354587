// Package testguest holds two guests of a few bytes for tests of machine drivers: one that counts, one that ends at once.
// They need no kernel, so they also run where a stock kernel does not (KVM of some virtual hosts).
package testguest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
)

// The guest that counts: 127 bytes of real-mode code in a boot sector.
// It counts in memory, then on the disk, then on the console, and says so in all three places:
//
//	memory 0x8000  attempts, 32 bit: raised before the disk is written
//	memory 0x8004  finished, 32 bit: set to attempts after the disk was written
//	disk   512     attempts as of the last write
//	memory 0x20000 one page: filled with attempts if its bit 4 is set, else zero
//	console        finished as eight letters A to P, most significant first; '!' for a failed write
//
// At every instant finished <= disk <= attempts <= finished+1.
//
// Assembled with: as -o g.o g.S && objcopy -O binary -j .text g.o g.img
//
//	.code16
//	start: cli
//	  xorw %ax,%ax; movw %ax,%ds; movw %ax,%es; movw %ax,%ss; movw $0x7000,%sp
//	  xorl %eax,%eax
//	  movw $0x8000,%di; movw $128,%cx; rep stosl
//	next: incl 0x8000
//	  xorl %eax,%eax
//	  testb $16,0x8000; jz fill
//	  movl 0x8000,%eax
//	fill: movw $0x2000,%cx; movw %cx,%es; xorw %di,%di; movw $1024,%cx; rep stosl
//	  xorw %cx,%cx; movw %cx,%es
//	  movw $0x0301,%ax; movw $0x8000,%bx; movw $2,%cx; movw $0x80,%dx; int $0x13
//	  movb $'!',%al; jc put
//	  movl 0x8000,%eax; movl %eax,0x8004
//	  movl %eax,%ebx; movw $8,%cx
//	digit: roll $4,%ebx; movb %bl,%al; andb $15,%al; addb $'A',%al; movw $0x3f8,%dx; outb %al,%dx; loop digit
//	  movb $10,%al
//	put: movw $0x3f8,%dx; outb %al,%dx
//	  movw $20,%si
//	wait: movw $2000,%cx
//	spin: loop spin
//	  decw %si; jnz wait
//	  jmp next
//	.org 510
//	.word 0xaa55
const countingCode = "" +
	"fa31c08ed88ec08ed0bc00706631c0bf0080b9800066f3ab66ff0600806631c0f606008010740466a10080b900208ec1" +
	"31ffb9000466f3ab31c98ec1b80103bb0080b90200ba8000cd13b021722066a1008066a304806689c3b9080066c1c304" +
	"88d8240f0441baf803eee2f0b00abaf803eebe1400b9d007e2fe4e75f8eb99"

// The other guest says goodbye and resets the machine, which ends it.
//
//	.code16
//	start: movw $0x3f8,%dx
//	  movb $'b',%al; outb %al,%dx
//	  movb $'y',%al; outb %al,%dx
//	  movb $'e',%al; outb %al,%dx
//	  movb $10,%al; outb %al,%dx
//	  movw $0xcf9,%dx; movb $6,%al; outb %al,%dx
//	stop: jmp stop
//	.org 510
//	.word 0xaa55
const endingCode = "baf803b062eeb079eeb065eeb00aeebaf90cb006eeebfe"

// DiskBytes is the size of the guests' disks.
const DiskBytes = 1 << 20

// Pages of the counting guest, and the bit of the counter that decides whether the second one is filled.
const (
	CounterPage = 0x8000 / pageBytes
	PatternPage = 0x20000 / pageBytes
	PatternBit  = 16
)

const (
	pageBytes  = 4096
	lineDigits = 8
)

// WriteCounting writes the disk of the guest that counts, raw.
func WriteCounting(path string) error { return writeGuest(path, countingCode) }

// WriteEnding writes the disk of the guest that ends at once, raw.
func WriteEnding(path string) error { return writeGuest(path, endingCode) }

func writeGuest(path, code string) error {
	boot := make([]byte, DiskBytes)
	if _, err := hex.Decode(boot, []byte(code)); err != nil {
		return fmt.Errorf("write guest: %w", err)
	}
	boot[510], boot[511] = 0x55, 0xaa
	return os.WriteFile(path, boot, 0o644)
}

// Ends reports whether the disk that begins with boot holds the guest that ends at once.
func Ends(boot []byte) bool {
	code, err := hex.DecodeString(endingCode)
	return err == nil && bytes.HasPrefix(boot, code)
}

// Counters is what the counting guest has in memory.
type Counters struct{ Attempts, Finished uint32 }

// ParseCounters reads the counters from the page that holds them.
func ParseCounters(page []byte) Counters {
	return Counters{binary.LittleEndian.Uint32(page), binary.LittleEndian.Uint32(page[4:])}
}

// Page gives the page that holds the counters.
func (c Counters) Page() []byte {
	page := make([]byte, pageBytes)
	binary.LittleEndian.PutUint32(page, c.Attempts)
	binary.LittleEndian.PutUint32(page[4:], c.Finished)
	return page
}

// Pattern gives the page that follows the counter.
func (c Counters) Pattern() []byte {
	page := make([]byte, pageBytes)
	if c.Attempts&PatternBit != 0 {
		for i := 0; i < len(page); i += 4 {
			binary.LittleEndian.PutUint32(page[i:], c.Attempts)
		}
	}
	return page
}

// ConsoleLine gives what the guest prints for a number.
func ConsoleLine(n uint32) []byte {
	line := make([]byte, 0, 9)
	for shift := 28; shift >= 0; shift -= 4 {
		line = append(line, 'A'+byte(n>>shift&15))
	}
	return append(line, '\n')
}

// ParseConsole gives the numbers of all whole lines.
func ParseConsole(console []byte) []uint32 {
	var numbers []uint32
	for line := range bytes.SplitSeq(console, []byte{'\n'}) {
		if len(line) != lineDigits {
			continue
		}
		var n uint32
		whole := true
		for _, c := range line {
			whole = whole && c >= 'A' && c <= 'P'
			n = n<<4 | uint32(c-'A')
		}
		if whole {
			numbers = append(numbers, n)
		}
	}
	return numbers
}
