package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vers/internal/build/engine"
	"vers/internal/mounts"
	"vers/internal/netstack"
)

// What the worker's root file system has, beside the host's programs, read-only. None of the host's other files are in
// it: neither configuration, nor home folders, nor keys.
const (
	ownDir         = "/run/vers"
	configPath     = ownDir + "/config.json"
	runtimePath    = ownDir + "/runtime" // this program; buildah calls it as its OCI runtime
	stepsNetwork   = ownDir + "/steps-network"
	authFile       = ownDir + "/auth.json"
	signaturePath  = ownDir + "/policy.json"
	containersConf = ownDir + "/containers.conf"
	registriesConf = ownDir + "/registries.conf"
	storageConf    = ownDir + "/storage.conf"
	mountsConf     = ownDir + "/mounts.conf"
	dockerfileDir  = ownDir + "/dockerfile"
	resolvConf     = "/etc/resolv.conf"
	hostsFile      = "/etc/hosts"
	contextDir     = "/context"
	storagePath    = "/store"
	temporaryDir   = "/var/tmp"
	cacheDir       = temporaryDir + "/buildah-cache-0" // buildah's name for what cache mounts hold
	mountsDir      = "/mounts"
)

// enterRoot makes that root file system and changes into it. The mount namespace is our own.
func enterRoot(s surroundings, config []byte) error {
	old, err := mounts.MakePrivate()
	if err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	b := &rootBuilder{root: filepath.Join(s.RunDir, "root")}
	b.mount("tmpfs", "tmpfs", "/", unix.MS_NOSUID, "mode=0755,size=256m")
	b.hostPrograms(s.Program, s.Runtime)
	b.kernelFileSystems()
	b.files(s, config)
	b.bind(filepath.Join(storeDir(s.Dir, s.Store), "storage"), storagePath, 0)
	b.bind(filepath.Join(s.RunDir, "tmp"), temporaryDir, 0)
	b.bind(filepath.Join(storeDir(s.Dir, s.Store), "cache"), cacheDir, 0)
	if s.Context != "" {
		b.bind(s.Context, contextDir, unix.MS_RDONLY)
	}
	for i, mount := range s.Mounts {
		flags := uintptr(0)
		if mount.ReadOnly {
			flags = unix.MS_RDONLY
		}
		b.bind(mount.Source, fmt.Sprintf("%s/%d", mountsDir, i), flags)
	}
	if b.err != nil {
		return b.err
	}
	if err := old.Replace(b.root); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return nil
}

// rootBuilder puts a root file system together; after the first error it does nothing more.
type rootBuilder struct {
	root string
	err  error
}

func (b *rootBuilder) fail(what string, err error) {
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("%s: %w", what, err)
	}
}

func (b *rootBuilder) mount(kind, source, target string, flags uintptr, data string) {
	if b.err != nil {
		return
	}
	path := filepath.Join(b.root, target)
	b.fail("make "+target, os.MkdirAll(path, 0o755))
	b.fail("mount "+target, unix.Mount(source, path, kind, flags, data))
}

// bind makes a file or folder of the host visible.
func (b *rootBuilder) bind(source, target string, flags uintptr) {
	if b.err != nil {
		return
	}
	path := filepath.Join(b.root, target)
	info, err := os.Stat(source)
	if err != nil {
		b.fail("make "+source+" visible for the build", err)
		return
	}
	if info.IsDir() {
		b.fail("make "+target, os.MkdirAll(path, 0o755))
	} else {
		b.file(target, nil)
	}
	b.fail("bind "+source, unix.Mount(source, path, "", unix.MS_BIND, ""))
	if flags != 0 {
		b.fail("bind "+source, unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""))
	}
}

func (b *rootBuilder) file(target string, content []byte) {
	if b.err != nil {
		return
	}
	path := filepath.Join(b.root, target)
	b.fail("make "+target, os.MkdirAll(filepath.Dir(path), 0o755))
	b.fail("write "+target, os.WriteFile(path, content, 0o600))
}

// hostPrograms brings the OCI runtime, with the libraries it may need, and the certificates of registries.
func (b *rootBuilder) hostPrograms(program, ociRuntime string) {
	folders := []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ssl/certs", "/etc/pki/tls/certs",
		"/etc/pki/ca-trust/extracted", "/etc/docker/certs.d", "/etc/containers/certs.d", "/etc/ld.so.cache"}
	for _, folder := range folders {
		info, err := os.Lstat(folder)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			b.fail("look at "+folder, err)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(folder)
			b.fail("read "+folder, err)
			b.fail("make "+folder, os.MkdirAll(filepath.Join(b.root, filepath.Dir(folder)), 0o755))
			b.fail("make "+folder, os.Symlink(target, filepath.Join(b.root, folder)))
		default:
			b.bind(folder, folder, unix.MS_RDONLY)
		}
	}
	if ociRuntime != "" && !strings.HasPrefix(ociRuntime, "/usr/") {
		b.bind(ociRuntime, ociRuntime, unix.MS_RDONLY)
	}
	b.bind(program, runtimePath, unix.MS_RDONLY) // by its path: /proc/self/exe leads into the mount namespace it was started in
}

func (b *rootBuilder) kernelFileSystems() {
	b.mount("proc", "proc", "/proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	b.mount("sysfs", "sysfs", "/sys", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "")
	if b.err == nil {
		b.fail("bind /sys/fs/cgroup", unix.Mount("/sys/fs/cgroup", filepath.Join(b.root, "/sys/fs/cgroup"), "", unix.MS_BIND|unix.MS_REC, ""))
	}
	b.mount("tmpfs", "tmpfs", "/dev", unix.MS_NOSUID, "mode=0755,size=64k")
	for _, device := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		b.bind("/dev/"+device, "/dev/"+device, 0)
	}
	b.mount("devpts", "devpts", "/dev/pts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
	b.mount("tmpfs", "tmpfs", "/dev/shm", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=64m")
	for link, target := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if b.err == nil {
			b.fail("make /dev/"+link, os.Symlink(target, filepath.Join(b.root, "dev", link)))
		}
	}
}

func (b *rootBuilder) files(s surroundings, config []byte) {
	b.file(configPath, config)
	b.file("/etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"))
	b.file("/etc/group", []byte("root:x:0:\nnogroup:x:65534:\n"))
	b.file("/etc/nsswitch.conf", []byte("hosts: files dns\n"))
	b.file(hostsFile, []byte("127.0.0.1\tlocalhost\n"))
	b.file(resolvConf, []byte("nameserver "+netstack.Resolver+"\n"))
	for _, public := range []string{hostsFile, resolvConf, "/etc/passwd", "/etc/group"} {
		if b.err == nil {
			b.fail("open "+public, os.Chmod(filepath.Join(b.root, public), 0o644))
		}
	}
	b.file(signaturePath, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`))
	b.file(containersConf, []byte("[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nimage_copy_tmp_dir = \""+temporaryDir+"\"\n"))
	b.file(storageConf, []byte("[storage]\ndriver = \"overlay\"\ngraphroot = \""+storagePath+"\"\nrunroot = \"/run/containers/storage\"\n"))
	b.file(mountsConf, nil)
	b.file(registriesConf, registriesFile(s.Registries))
	auth := s.Auth
	if len(auth) == 0 {
		auth = []byte("{}")
	}
	b.file(authFile, auth)
	for folder, mode := range map[string]fs.FileMode{"/root": 0o700, "/tmp": 0o777 | fs.ModeSticky, dockerfileDir: 0o700, "/var/lib/containers": 0o700} {
		if b.err == nil {
			b.fail("make "+folder, os.MkdirAll(filepath.Join(b.root, folder), 0o700))
			b.fail("make "+folder, os.Chmod(filepath.Join(b.root, folder), mode))
		}
	}
	if b.err == nil && s.Network != engine.NetworkNone {
		b.file(stepsNetwork, nil)
		b.fail("keep the steps' network", unix.Mount(fmt.Sprintf("/proc/self/fd/%d", stepsFD), filepath.Join(b.root, stepsNetwork), "", unix.MS_BIND, ""))
		_ = unix.Close(stepsFD)
	}
}

// registriesFile says that names without a registry are Docker Hub's, as in Docker, and which registries need no TLS:
// those of this host, as in Docker, and the configured ones.
func registriesFile(registries []string) []byte {
	var text strings.Builder
	text.WriteString("unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"disabled\"\n")
	for _, registry := range append([]string{"localhost", "127.0.0.1"}, registries...) {
		fmt.Fprintf(&text, "[[registry]]\nlocation = %q\ninsecure = true\n", registry)
	}
	return []byte(text.String())
}
