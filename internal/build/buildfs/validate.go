package buildfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"reflect"
	"regexp"
	"strings"

	"vers/internal/build/engine"
	"vers/internal/rootfs"
)

// CheckOptions change what a check looks at.
type CheckOptions struct {
	Set         []string // KEY=VALUE, in place of what the script says
	Force       bool     // take a file system that cannot hold a root file system
	HostVolumes bool     // container.volumes are paths of the host
}

// Check reads the script and names everything that is wrong with it and with what it refers to. The script is nil when
// its text is not TOML.
func (p *Package) Check(o CheckOptions) (*Script, *Report, error) {
	report := &Report{}
	doc, syntax := parseDocument(p.file, p.text)
	if syntax != nil {
		report.Faults = append(report.Faults, *syntax)
		report.sort()
		return nil, report, nil
	}
	if err := doc.apply(o.Set); err != nil {
		return nil, nil, err
	}
	c := &checker{decoder: decoder{doc, report}, pkg: p, options: o, script: &Script{}}
	c.table("", doc.values, reflect.ValueOf(c.script).Elem())
	c.defaults()
	c.filesystem()
	c.container()
	for i := range c.script.Commands {
		c.command(element("commands", i), &c.script.Commands[i])
	}
	for i := range c.script.Overlays {
		c.overlay(element("overlays", i), &c.script.Overlays[i])
	}
	c.destinations()
	c.export()
	c.guest()
	report.sort()
	return c.script, report, nil
}

// checker holds the rules that need more than one key, or the package.
type checker struct {
	decoder
	pkg     *Package
	options CheckOptions
	script  *Script
}

func (c *checker) warn(path, format string, args ...any) {
	c.report.Warnings = append(c.report.Warnings, c.doc.problem(path, format, args...))
}

// defaults puts in what is not zero.
func (c *checker) defaults() {
	s := c.script
	for _, d := range []struct {
		field *string
		value string
	}{
		{&s.Filesystem.Type, string(rootfs.Ext4)}, {&s.Container.Engine, engine.Auto},
		{&s.Container.Image.Pull, "missing"}, {&s.Container.Network, "default"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	for i := range s.Overlays {
		if s.Overlays[i].IfExists == "" {
			s.Overlays[i].IfExists = "replace"
		}
	}
	if s.Version != 0 && s.Version != 1 {
		c.fault("version", "%d is not known here; this program reads version 1", s.Version)
	}
}

var uuidPattern = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

func (c *checker) filesystem() {
	f := c.script.Filesystem
	if b := f.BlockSizeMiB; b != nil && *b > 0 && f.SizeMiB > 0 && int64(f.SizeMiB)%*b != 0 {
		c.fault("filesystem.block_size_mib", "%d does not divide size_mib, which is %d", *b, f.SizeMiB)
	}
	if f.kind() == rootfs.VFAT && !c.options.Force {
		c.fault("filesystem.type", "vfat holds no owners, modes and links, so that a system on it does not work; take ext4, or say --force if it is for data")
	}
	if f.UUID != "" && !uuidPattern.MatchString(f.UUID) {
		c.fault("filesystem.uuid", "%q is not of the form 01234567-89ab-cdef-0123-456789abcdef", f.UUID)
	}
	if len(f.DDArgs) > 0 {
		c.warn("filesystem.dd_args", "not used: the file is made without dd")
	}
	if f.HeadroomMiB != nil && f.SizeMiB > 0 {
		c.warn("filesystem.headroom_mib", "not used, because size_mib is given")
	}
}

var (
	digestPattern   = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	platformPattern = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9_]+(/v[0-9]+)?$`)
	imagePattern    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:-]*$`)
	tagPattern      = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	hostnamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)
	variablePattern = regexp.MustCompile(`^[^=\x00]+$`)
)

func (c *checker) container() {
	k := c.script.Container
	c.match("container.image.name", k.Image.Name, imagePattern, "names no image, such as docker.io/library/debian")
	c.match("container.image.tag", k.Image.Tag, tagPattern, "is no tag")
	c.match("container.image.digest", k.Image.Digest, digestPattern, "is no digest: sha256: and 64 hexadecimal digits")
	c.match("container.image.platform", k.Image.Platform, platformPattern, "is no platform, such as linux/amd64")
	c.match("container.hostname", k.Hostname, hostnamePattern, "is no host name")
	c.environment("container.env", k.Env)
	c.connection(k)
	for source, destination := range k.Volumes {
		c.volume(below("container.volumes", source), source, destination)
	}
}

func (c *checker) match(key, value string, pattern *regexp.Regexp, message string) {
	if value != "" && !pattern.MatchString(value) {
		c.fault(key, "%q %s", value, message)
	}
}

func (c *checker) environment(key string, env map[string]string) {
	for name, value := range env {
		if !variablePattern.MatchString(name) || strings.ContainsRune(value, 0) {
			c.fault(below(key, name), "is no name and value of a variable")
		}
	}
}

func (c *checker) connection(k Container) {
	uri := k.ConnectionURI
	scheme, _, hasScheme := strings.Cut(uri, "://")
	switch {
	case uri == "" || scheme == "unix" || strings.HasPrefix(uri, "/"):
	case k.Engine == "podman":
		c.fault("container.connection_uri", "%q is not a socket: Podman's begins with unix://", uri)
	case !hasScheme || scheme != "http" && scheme != "https" && scheme != "tcp":
		c.fault("container.connection_uri", "%q is neither unix://, http://, https://, tcp:// nor the path of a socket", uri)
	}
}

func (c *checker) volume(key, source, destination string) {
	if !strings.HasPrefix(destination, "/") || path.Clean(destination) == "/" {
		c.fault(key, "%q is no place in the container: an absolute path below /", destination)
	}
	if !c.options.HostVolumes {
		if _, _, err := c.pkg.stat(source); err != nil {
			c.fault(key, "%v; --host-volumes takes paths of this machine", err)
		}
		return
	}
	if !strings.HasPrefix(source, "/") {
		c.fault(key, "%q is not absolute, as a path of this machine must be", source)
	} else if _, err := os.Stat(source); err != nil {
		c.fault(key, "%v", errors.Unwrap(err))
	}
}

func (c *checker) command(key string, command *Command) {
	var kinds []string
	if !command.Command.empty() {
		kinds = append(kinds, "command")
	}
	if command.ScriptInline != "" {
		kinds = append(kinds, "script_inline")
		c.interpreter(key+".script_inline", []byte(command.ScriptInline))
	}
	if command.ScriptPath != "" {
		kinds = append(kinds, "script_path")
		c.scriptFile(key+".script_path", command.ScriptPath)
	}
	switch {
	case len(kinds) == 0 && !c.has(key, "command"):
		c.fault(key, "has none of command, script_inline, script_path")
	case len(kinds) > 1:
		c.fault(key, "has %s; exactly one of them says what runs", strings.Join(kinds, " and "))
	}
	if command.GID != nil && command.UID == nil {
		c.warn(key+".gid", "counts only with uid")
	}
	if command.Shell != "" && command.Command.Shell == "" {
		c.warn(key+".shell", "counts only for a command line")
	}
	if d := command.WorkingDir; d != "" && !strings.HasPrefix(d, "/") {
		c.fault(key+".working_dir", "%q is not absolute", d)
	}
	c.environment(key+".env", command.Env)
}

// has reports whether the script has the key, even with a value that was refused.
func (c *checker) has(table, key string) bool {
	_, ok := c.doc.places[table+"."+key]
	return ok
}

func (c *checker) scriptFile(key, reference string) {
	name, info, err := c.pkg.stat(reference)
	switch {
	case err != nil:
		c.fault(key, "%v", err)
	case !info.Mode().IsRegular():
		c.fault(key, "%q is not a file", reference)
	default:
		text, err := c.pkg.root.ReadFile(name)
		if err != nil {
			c.fault(key, "cannot be read: %v", err)
			return
		}
		c.interpreter(key, text)
	}
}

// interpreter warns of scripts that do not say what runs them, or say it with an end of line of Windows.
func (c *checker) interpreter(key string, text []byte) {
	first, _, _ := strings.Cut(string(text), "\n")
	switch {
	case strings.HasPrefix(string(text), "\x7fELF"):
	case !strings.HasPrefix(first, "#!"):
		c.warn(key, "has no interpreter in its first line (#!/bin/sh); /bin/sh runs it")
	case strings.HasSuffix(first, "\r"):
		c.fault(key, "has line ends of Windows, so that the interpreter %q is not found; save it with those of Unix", strings.TrimSuffix(first[2:], "\r"))
	}
}

func (c *checker) overlay(key string, o *Overlay) {
	switch {
	case o.Source != "" && o.SourceInline != nil:
		c.fault(key, "has source and source_inline; exactly one of them gives the content")
	case o.Source == "" && o.SourceInline == nil:
		c.fault(key, "has neither source nor source_inline")
	case o.SourceInline != nil && o.IsDirectory:
		c.fault(key+".is_directory", "source_inline is a file, not a folder")
	}
	if o.Source != "" {
		c.overlaySource(key, o)
	}
	if strings.HasPrefix(o.Destination, "/") && path.Clean(o.Destination) == "/" && !o.IsDirectory {
		c.fault(key+".destination", "/ is a folder; a file needs a name")
	}
	c.place(key+".destination", o.Destination)
}

func (c *checker) overlaySource(key string, o *Overlay) {
	_, info, err := c.pkg.stat(o.Source)
	switch {
	case err != nil:
		c.fault(key+".source", "%v", err)
	case o.IsDirectory && !info.IsDir():
		c.fault(key+".is_directory", "%q is a file", o.Source)
	case info.IsDir():
		o.IsDirectory = true
	case !info.Mode().IsRegular():
		c.fault(key+".source", "%q is neither a file nor a folder", o.Source)
	}
}

// place checks a path of the file system.
func (c *checker) place(key, name string) {
	switch {
	case name == "":
		if c.doc.places[key].line > 0 {
			c.fault(key, "is empty")
		}
	case strings.ContainsRune(name, 0):
		c.fault(key, "holds a zero byte")
	case climbs(name):
		c.fault(key, "%q leads out of the file system", name)
	case !strings.HasPrefix(name, "/"):
		c.warn(key, "%q is not absolute; it is taken from /", name)
	}
}

// destinations warns of overlays in the same place.
func (c *checker) destinations() {
	seen := map[string]int{}
	for i, o := range c.script.Overlays {
		if o.IsDirectory || o.Destination == "" {
			continue
		}
		name := inside(o.Destination)
		if first, ok := seen[name]; ok {
			c.warn(element("overlays", i)+".destination", "overlays[%d] has the same destination; this one wins", first)
		}
		seen[name] = i
	}
}

func (c *checker) export() {
	e := c.script.Export
	for _, list := range []struct {
		key   string
		paths []string
	}{
		{"export.directories.include", e.Directories.Include}, {"export.directories.create", e.Directories.Create},
		{"export.files.include", e.Files.Include}, {"export.files.create", e.Files.Create},
	} {
		for i, name := range list.paths {
			key := element(list.key, i)
			if name == "" {
				c.fault(key, "is empty")
			}
			c.place(key, name)
			if inside(name) == "" && strings.HasPrefix(list.key, "export.files") {
				c.fault(key, "%q is a folder", name)
			}
		}
	}
	for i, pattern := range e.Exclude {
		if _, err := compilePattern(pattern); err != nil {
			c.fault(element("export.exclude", i), "%v", err)
		}
	}
	included := len(e.Directories.Include) + len(e.Files.Include)
	if !e.All && included == 0 {
		c.warn("export", "nothing of the container is exported; name folders in export.directories.include, or say export.all = true")
	}
	if e.All && included > 0 {
		c.warn("export.all", "everything is exported, so that the include lists say nothing more")
	}
	folders := map[string]bool{}
	for _, name := range e.Directories.Create {
		folders[inside(name)] = true
	}
	for i, name := range e.Files.Create {
		if folders[inside(name)] {
			c.fault(element("export.files.create", i), "%q is made as a folder, too", name)
		}
	}
}

func (c *checker) guest() {
	s := c.script
	if s.Guest.Init != "" && (!strings.HasPrefix(s.Guest.Init, "/") || path.Clean(s.Guest.Init) == "/") {
		c.fault("guest.init", "%q is not the absolute path of a program", s.Guest.Init)
	}
	if boots := s.Checks.Boot || len(s.Checks.Commands) > 0; boots && s.Filesystem.kind() != rootfs.Ext4 {
		c.fault("checks", "VMs boot from ext4 only, and filesystem.type is %s", s.Filesystem.Type)
	}
	for i, line := range s.Checks.Commands {
		if strings.TrimSpace(line) == "" {
			c.fault(element("checks.commands", i), "is empty")
		}
	}
}

// climbs reports whether a path, taken from the root, goes above it.
func climbs(name string) bool {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	return clean == ".." || strings.HasPrefix(clean, "../")
}

// inside is a path of the file system as archives name it: clean, without the leading slash; "" is the root.
func inside(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// Summary says what a script makes, for people.
func (s *Script) Summary() string {
	size := "automatic size"
	if s.Filesystem.SizeMiB > 0 {
		size = fmt.Sprintf("%d MiB", s.Filesystem.SizeMiB)
	}
	return fmt.Sprintf("%s, %s, from %s (%s), %d commands, %d overlays", s.Filesystem.Type, size, s.Container.Image,
		s.Container.Engine, len(s.Commands), len(s.Overlays))
}
