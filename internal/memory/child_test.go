package memory

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childEnv makes the test binary the process whose memory is captured.
const childEnv = "VERS_MEMORY_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := runChild(); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runChild maps memory as told by its first line of input, prints the address, and then obeys one line at a time:
//
//	fill <page> <count> <seed>   write a pattern to pages
//	every <from> <to> <step> <seed>
//	zero <page> <count>          write zeroes
//	read <page> <count>          touch without writing
//	drop <page> <count>          madvise(MADV_DONTNEED)
func runChild() error {
	in := bufio.NewScanner(os.Stdin)
	in.Scan()
	var size int
	var path, advice string
	if _, err := fmt.Sscan(in.Text(), &size, &path, &advice); err != nil {
		return err
	}
	fd, flags := -1, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		fd, flags = int(f.Fd()), unix.MAP_PRIVATE|unix.MAP_NORESERVE
	}
	if advice == "shared" {
		flags = flags&^unix.MAP_PRIVATE | unix.MAP_SHARED
	}
	// An address that huge pages can begin at.
	area, err := unix.MmapPtr(-1, 0, nil, uintptr(size+hugePage), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	start := unsafe.Add(area, -int(uintptr(area))&(hugePage-1))
	if _, err := unix.MmapPtr(fd, 0, start, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, flags|unix.MAP_FIXED); err != nil {
		return err
	}
	ptr := unsafe.Slice((*byte)(start), size)
	switch advice {
	case "huge":
		_ = unix.Madvise(ptr, unix.MADV_HUGEPAGE)
	case "small":
		_ = unix.Madvise(ptr, unix.MADV_NOHUGEPAGE)
	}
	fmt.Println("ok", uintptr(start))
	var sum byte
	for in.Scan() {
		words := strings.Fields(in.Text())
		var n []int64
		for _, w := range words[1:] {
			v, err := strconv.ParseInt(w, 10, 64)
			if err != nil {
				return err
			}
			n = append(n, v)
		}
		part := func() []byte { return ptr[n[0]*PageSize : (n[0]+n[1])*PageSize] }
		switch words[0] {
		case "fill":
			for i := range n[1] {
				pattern(part()[i*PageSize:][:PageSize], n[0]+i, n[2])
			}
		case "every":
			for page := n[0]; page < n[1]; page += n[2] {
				pattern(ptr[page*PageSize:][:PageSize], page, n[3])
			}
		case "zero":
			clear(part())
		case "read":
			for i := int64(0); i < n[1]; i++ {
				sum += part()[i*PageSize]
			}
		case "drop":
			if err := unix.Madvise(part(), unix.MADV_DONTNEED); err != nil {
				return err
			}
		}
		fmt.Println("ok", sum)
	}
	return nil
}

// pattern fills a page with something that depends on its number and a seed and is never zero.
func pattern(page []byte, number, seed int64) {
	x := uint64(number)*0x9e3779b97f4a7c15 + uint64(seed)<<32 + 1
	for i := 0; i < len(page); i += 8 {
		x = x*6364136223846793005 + 1442695040888963407
		for j := range 8 {
			page[i+j] = byte(x >> (8 * j))
		}
		page[i] |= 1
	}
}

// child is a process with a mapping that stands for guest memory.
type child struct {
	t       testing.TB
	pid     int
	address uintptr
	size    int64
	in      io.WriteCloser
	out     *bufio.Reader
}

// startChild maps size bytes of path privately ("-": anonymous). advice is "huge", "small", "shared" or "-".
func startChild(t testing.TB, size int64, path, advice string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	c := &child{t: t, pid: cmd.Process.Pid, size: size, in: in, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	c.address = uintptr(c.do("%d %s %s", size, path, advice))
	return c
}

// do sends one line and waits until it was obeyed.
func (c *child) do(format string, args ...any) uint64 {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		c.t.Fatal(err)
	}
	line, err := c.out.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "ok ") {
		c.t.Fatalf("child: %q, %v", line, err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(line[3:]), 10, 64)
	must(c.t, err)
	return n
}

// stop stops the process as a pause stops a guest, until the returned function is called.
func (c *child) stop() func() {
	c.t.Helper()
	must(c.t, unix.Kill(c.pid, unix.SIGSTOP))
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, c.pid, &info, unix.WSTOPPED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		must(c.t, err)
		return func() { must(c.t, unix.Kill(c.pid, unix.SIGCONT)) }
	}
}

// capture takes what is dirty in the stopped process.
func (c *child) capture() *Snapshot {
	c.t.Helper()
	capturer, err := Prepare(c.pid, c.address, c.size)
	must(c.t, err)
	defer capturer.Close()
	defer c.stop()()
	s, err := capturer.Copy(context.Background())
	must(c.t, err)
	c.t.Cleanup(s.Release)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
