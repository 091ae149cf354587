package buildfs

import "vers/internal/rootfs"

// Script is a build script. Every script of buildfs 0.3.4 is one, with the same keys; enum values are taken in either
// case. The tags are what the parser, the JSON Schema and the messages are made of: `doc` says what a key means, `enum`
// lists its values (any case; stored in lower case), `default` is what holds when the key is absent.
type Script struct {
	Version      int64      `toml:"version" default:"1" doc:"Version of this schema"`
	Filesystem   Filesystem `toml:"filesystem" doc:"The file system to make"`
	Container    Container  `toml:"container" required:"true" doc:"The container in which commands run"`
	Commands     []Command  `toml:"commands" doc:"Commands, in order; the first one that fails ends the build"`
	Overlays     []Overlay  `toml:"overlays" doc:"Files and folders laid over the result; they always win"`
	Export       Export     `toml:"export" doc:"What of the container gets into the file system; nothing but what is named here"`
	Guest        Guest      `toml:"guest" doc:"What the platform needs of the file system"`
	Checks       Checks     `toml:"checks" doc:"Checks of the finished file system in a VM"`
	Reproducible *bool      `toml:"reproducible" default:"true" doc:"Give files made by the build a fixed time, so that the same script gives the same content; SOURCE_DATE_EPOCH sets the time"`
}

// Filesystem is [filesystem].
type Filesystem struct {
	Type         string   `toml:"type" enum:"Ext4,Btrfs,Squashfs,Vfat,Xfs,Erofs" default:"ext4" doc:"Kind of file system; VMs here boot from ext4"`
	SizeMiB      Size     `toml:"size_mib" default:"auto" doc:"Size in MiB, or \"auto\": what the content needs, and headroom_mib more"`
	HeadroomMiB  *int64   `toml:"headroom_mib" min:"0" default:"256" doc:"Free space in MiB when the size is automatic"`
	BlockSizeMiB *int64   `toml:"block_size_mib" min:"1" doc:"Must divide size_mib; kept for buildfs, which handed it to dd"`
	DDArgs       []string `toml:"dd_args" doc:"Accepted and not used: the file is made without dd"`
	MkfsArgs     []string `toml:"mkfs_args" doc:"Further arguments of the mkfs program"`
	UUID         string   `toml:"uuid" doc:"Identifier; derived from the content when absent"`
	Label        string   `toml:"label" doc:"Name of the volume"`
}

// Container is [container].
type Container struct {
	Engine        string            `toml:"engine" enum:"Docker,Podman,Embedded,auto" default:"auto" doc:"Container engine; auto takes Docker, else Podman, else the embedded one"`
	Image         ImageRef          `toml:"image" required:"true" doc:"Base image: {name, tag} or name:tag or name@digest"`
	Rootful       bool              `toml:"rootful" doc:"Run privileged; rarely needed"`
	WaitTimeoutS  *int64            `toml:"wait_timeout_s" min:"0" doc:"Accepted and not used: the container only sleeps, so that ending it needs no time"`
	ConnectionURI string            `toml:"connection_uri" doc:"Address of the engine: unix:// or http://, or the path of a socket"`
	Volumes       map[string]string `toml:"volumes" doc:"Folders of the package made visible in the container, read-only; with --host-volumes folders of the host, writable"`
	Env           map[string]string `toml:"env" doc:"Environment of all commands"`
	Hostname      string            `toml:"hostname" doc:"Host name of the container"`
	OCIRuntime    string            `toml:"oci_runtime" doc:"Runtime of the engine, such as runc"`
	Timeout       *int64            `toml:"timeout" min:"1" doc:"Seconds that all commands together may take"`
	CapAdd        []string          `toml:"cap_add" doc:"Capabilities to add"`
	CapDrop       []string          `toml:"cap_drop" doc:"Capabilities to take away"`
	Network       string            `toml:"network" enum:"default,none" default:"default" doc:"none: the commands reach no network"`
}

// ImageRef is container.image: a table, or one string.
type ImageRef struct {
	Name     string `toml:"name" required:"true" doc:"Repository, such as docker.io/library/debian"`
	Tag      string `toml:"tag" doc:"Tag; name alone means latest"`
	Digest   string `toml:"digest" doc:"sha256:… of the manifest; instead of a tag, or besides it as a pin"`
	Platform string `toml:"platform" doc:"os/architecture; the engine's own when absent"`
	Pull     string `toml:"pull" enum:"missing,always,never" default:"missing" doc:"When the registry is asked"`
}

// Command is one of [[commands]].
type Command struct {
	Name         string            `toml:"name" doc:"Shown instead of the command"`
	Command      Line              `toml:"command" doc:"A line for the shell, or a list: the program and its arguments"`
	ScriptInline string            `toml:"script_inline" doc:"Text of a script, beginning with #! and its interpreter"`
	ScriptPath   string            `toml:"script_path" doc:"A script of the package"`
	UID          *int64            `toml:"uid" min:"0" doc:"User that runs it; root when absent"`
	GID          *int64            `toml:"gid" min:"0" doc:"Group; counts only with uid"`
	WorkingDir   string            `toml:"working_dir" doc:"Folder it runs in"`
	Privileged   bool              `toml:"privileged" doc:"Run this command privileged"`
	Env          map[string]string `toml:"env" doc:"Environment of this command"`
	TimeoutS     *int64            `toml:"timeout_s" min:"1" doc:"Seconds it may take"`
	AllowFailure bool              `toml:"allow_failure" doc:"Go on when it fails"`
	Shell        string            `toml:"shell" default:"/bin/sh" doc:"Shell for a command line; none splits at blanks, as buildfs did"`
}

// Overlay is one of [[overlays]].
type Overlay struct {
	Source       string  `toml:"source" doc:"File or folder of the package"`
	SourceInline *string `toml:"source_inline" doc:"Content of a file"`
	Destination  string  `toml:"destination" required:"true" doc:"Place in the file system"`
	IsDirectory  bool    `toml:"is_directory" doc:"source is a folder"`
	Mounted      bool    `toml:"mounted" doc:"Also there while the commands run"`
	Mode         Mode    `toml:"mode" doc:"Permissions of the files, such as \"0755\"; 0644 for source_inline, else those in the package"`
	UID          int64   `toml:"uid" min:"0" default:"0" doc:"Owner"`
	GID          int64   `toml:"gid" min:"0" default:"0" doc:"Group"`
	IfExists     string  `toml:"if_exists" enum:"replace,skip,error" default:"replace" doc:"What to do where the container has a file already"`
}

// Export is [export].
type Export struct {
	All         bool       `toml:"all" doc:"Everything, but for what exclude names"`
	Exclude     []string   `toml:"exclude" doc:"Patterns of paths that stay out: * within a name, ** across folders; a folder with all in it"`
	Directories ExportList `toml:"directories" doc:"Folders"`
	Files       ExportList `toml:"files" doc:"Single files"`
}

// ExportList is [export.directories] and [export.files].
type ExportList struct {
	Include []string `toml:"include" doc:"Taken from the container"`
	Create  []string `toml:"create" doc:"Made empty, where they are not there"`
}

// Guest is [guest].
type Guest struct {
	Agent *bool  `toml:"agent" default:"true" doc:"Prepare the file system for VMs here: mount points, hosts, resolv.conf. The agent itself is put in at every boot"`
	SSH   *bool  `toml:"ssh" default:"true" doc:"false: the agent in the VM answers no SSH"`
	Init  string `toml:"init" doc:"First process; what is found when absent: /sbin/init, systemd, else the agent"`
}

// Checks is [checks].
type Checks struct {
	Boot     bool     `toml:"boot" doc:"Boot the finished file system in a VM"`
	Commands []string `toml:"commands" doc:"Shell lines that must succeed in that VM"`
}

// Size is size_mib. 0 is automatic.
type Size int64

// Line is a command: Args of a list, or Shell, a line for the shell.
type Line struct {
	Shell string
	Args  []string
}

func (l Line) empty() bool { return l.Shell == "" && len(l.Args) == 0 }

// Mode is permissions. Unset is none given.
type Mode struct {
	Bits int64
	Set  bool
}

// Repro reports whether files made by the build get a fixed time.
func (s *Script) Repro() bool { return s.Reproducible == nil || *s.Reproducible }

// Prepared reports whether the file system is prepared for VMs.
func (g Guest) Prepared() bool { return g.Agent == nil || *g.Agent }

// Type is the kind of file system.
func (f Filesystem) kind() rootfs.Type { return rootfs.Type(f.Type) }

const defaultHeadroomMiB = 256

func (f Filesystem) headroom() int64 {
	if f.HeadroomMiB == nil {
		return defaultHeadroomMiB
	}
	return *f.HeadroomMiB
}

// String is the image as engines take it.
func (r ImageRef) String() string {
	switch {
	case r.Digest != "":
		return r.Name + "@" + r.Digest
	case r.Tag != "":
		return r.Name + ":" + r.Tag
	}
	return r.Name
}
