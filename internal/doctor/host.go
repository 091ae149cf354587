package doctor

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vers/internal/image"
)

const (
	wantDisk     = 10 << 30 // bytes: kernel and image need 0.5 GiB, the rest is for commits
	needDisk     = 2 << 30
	wantMemory   = 2 << 30 // bytes: one VM of the default size beside the reserve of 1 GiB, rounded up
	needMemory   = 512 << 20
	debianTested = "tested on Debian 12 and 13"
)

func currentUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Getuid())
}

func system() Check {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return Check{Name: "system", Level: Recommended, Detail: "unknown: " + err.Error() + "; " + debianTested}
	}
	return describeSystem(string(data))
}

func describeSystem(osRelease string) Check {
	values := map[string]string{}
	for _, line := range strings.Split(osRelease, "\n") {
		key, value, _ := strings.Cut(line, "=")
		values[key] = strings.Trim(value, `"'`)
	}
	c := Check{Name: "system", Level: Recommended, Detail: values["PRETTY_NAME"]}
	c.OK = values["ID"] == "debian" && (values["VERSION_ID"] == "12" || values["VERSION_ID"] == "13")
	if !c.OK {
		c.Detail += "; " + debianTested
	}
	return c
}

func privileges() Check {
	if os.Geteuid() == 0 {
		return Check{Name: "root", OK: true, Level: Recommended, Detail: "each VM gets a user of its own"}
	}
	return Check{
		Name: "root", Level: Recommended, Fix: "sudo versd, or the systemd unit in dist/",
		Detail: "not root: VMs run as " + currentUser() + " and see that user's files, images are made more slowly and need package uidmap",
	}
}

// tools are the programs that the first start needs. Once kernel and image are there they are only needed for new ones.
func tools(dataDir string) []Check {
	level := Required
	_, kernelErr := image.OpenKernel(dataDir, image.DefaultKernel)
	_, imageErr := image.OpenImage(dataDir, image.DefaultImage)
	if kernelErr == nil && imageErr == nil {
		level = Recommended
	}
	var checks []Check
	needed := []struct{ name, pkg, purpose string }{
		{"apt-get", "apt", "fetches the kernel"},
		{"dpkg-deb", "dpkg", "unpacks it"},
		{"mmdebstrap", "mmdebstrap", "makes the default image"},
		{"mke2fs", "e2fsprogs", "makes its file system"},
	}
	if os.Geteuid() != 0 {
		needed = append(needed, struct{ name, pkg, purpose string }{"newuidmap", "uidmap", "lets an image made without root have files of other users"})
	}
	for _, tool := range needed {
		c := Check{Name: tool.name, Level: level, Detail: tool.purpose, Fix: "apt-get install " + tool.pkg}
		if path, err := findTool(tool.name); err != nil {
			c.Detail = "not found; it " + tool.purpose
		} else {
			c.OK, c.Detail = true, path+": "+tool.purpose
		}
		checks = append(checks, c)
	}
	return checks
}

// findTool looks into the administrator's folders too, which are not in every user's PATH.
func findTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	return path, err
}

// containerEngine says whether Dockerfiles can be built. VMs run without.
func containerEngine(o Options) Check {
	c := Check{Name: "container engine", Level: Recommended, OK: o.EngineErr == nil && len(o.EngineNotes) == 0, Detail: o.Engine}
	switch {
	case o.EngineErr != nil:
		c.Detail = "no Dockerfile can be built: " + o.EngineErr.Error()
		if strings.Contains(c.Detail, "runc") {
			c.Fix = "apt-get install runc"
		}
	case len(o.EngineNotes) > 0:
		c.Detail += ": " + strings.Join(o.EngineNotes, " ")
	}
	return c
}

func loopDevices() Check {
	c := Check{Name: "loop devices", Level: Recommended, Fix: "modprobe loop"}
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		c.Detail = "not usable, images are made more slowly and file times in whole seconds: " + err.Error()
		if errors.Is(err, os.ErrPermission) {
			c.Fix = "run versd as root"
		}
		return c
	}
	defer f.Close()
	if n, err := unix.IoctlRetInt(int(f.Fd()), unix.LOOP_CTL_GET_FREE); err != nil {
		c.Detail = fmt.Sprintf("none is free (%v), images are made more slowly", err)
	} else {
		c.OK, c.Detail = true, fmt.Sprintf("loop%d is free", n)
	}
	return c
}

// existing is the nearest folder above path that exists, for questions about its file system.
func existing(path string) string {
	for dir := path; ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return dir
		} else if dir == filepath.Dir(dir) {
			return dir
		}
	}
}

func diskSpace(dataDir string) Check {
	c := Check{Name: "disk space", Level: Recommended, Fix: "set data_dir in /etc/vers/versd.toml to a larger file system"}
	var st unix.Statfs_t
	dir := existing(dataDir)
	if err := unix.Statfs(dir, &st); err != nil {
		c.Detail = fmt.Sprintf("not known for %s: %v", dir, err)
		return c
	}
	free := st.Bavail * uint64(st.Bsize)
	c.OK = free >= wantDisk
	c.Detail = fmt.Sprintf("%s free for %s", size(free), dataDir)
	if free < needDisk {
		c.Level = Required
	}
	if !c.OK {
		c.Detail += fmt.Sprintf("; %s and more are good, %s the least", size(wantDisk), size(needDisk))
	}
	return c
}

// sharedBlocks tries whether two files can share their blocks (reflink): commits then cost no copy of their parent.
func sharedBlocks(dataDir string) Check {
	c := Check{Name: "shared blocks", Level: Info}
	dir := existing(dataDir)
	from, err := os.CreateTemp(dir, ".doctor-")
	if err != nil {
		c.Level, c.Detail = Recommended, fmt.Sprintf("not known, %s cannot be written: %v", dir, err)
		return c
	}
	defer os.Remove(from.Name())
	defer from.Close()
	to, err := os.CreateTemp(dir, ".doctor-")
	if err != nil {
		c.Detail = "not known: " + err.Error()
		return c
	}
	defer os.Remove(to.Name())
	defer to.Close()
	if _, err := from.Write(make([]byte, 4096)); err != nil {
		c.Detail = "not known: " + err.Error()
		return c
	}
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
		c.Detail = fmt.Sprintf("the file system of %s cannot share blocks between files (%v): memory of commits is copied. XFS and btrfs can", dir, err)
		return c
	}
	c.OK, c.Detail = true, "files share blocks: commits copy only what changed"
	return c
}

func freeMemory() Check {
	c := Check{Name: "memory", Level: Recommended}
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		c.Detail = "not known: " + err.Error()
		return c
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "MemAvailable:" {
			continue
		}
		kib, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			break
		}
		free := kib << 10
		c.OK = free >= wantMemory
		c.Detail = size(free) + " available"
		if free < needMemory {
			c.Level = Required
		}
		if !c.OK {
			c.Detail += fmt.Sprintf("; one VM of the default size and the host's reserve need %s", size(wantMemory))
		}
		return c
	}
	c.Detail = "not known: /proc/meminfo has no MemAvailable"
	return c
}
