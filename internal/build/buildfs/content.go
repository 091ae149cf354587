package buildfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"vers/internal/fault"
	"vers/internal/rootfs"
)

// noSSH is the file that keeps the agent in a VM from answering SSH.
const noSSH = "etc/vers/no-ssh"

// content makes the archive of the finished file system: what is exported, then what is created, then the overlays.
type content struct {
	pkg      *Package
	script   *Script
	state    *state
	chosen   *selection
	overlays []overlayEntry
	epoch    time.Time // times after newest become this
	newest   time.Time
	overlaid map[string]bool // names of overlays that are files
	warnings []string
}

// newContent reads the state's index, and finds out everything before a byte is written.
func newContent(ctx context.Context, p *Package, s *Script, st *state, sourceDate *time.Time) (*content, error) {
	c := &content{pkg: p, script: s, state: st, epoch: packTime, newest: st.started.Add(-time.Second), overlaid: map[string]bool{}}
	switch {
	case sourceDate != nil:
		c.epoch, c.newest = *sourceDate, *sourceDate
	case !s.Repro():
		c.newest = time.Unix(1<<62, 0)
		c.epoch = time.Now()
	}
	archive, err := st.read()
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	x, err := readIndex(readerWithContext{ctx, archive})
	if err != nil {
		return nil, err
	}
	if c.chosen, err = x.selectExport(s.Export); err != nil {
		return nil, err
	}
	if err := c.planOverlays(ctx); err != nil {
		return nil, err
	}
	return c, c.verify()
}

// planOverlays collects the overlays' entries and takes out of the export what they replace.
func (c *content) planOverlays(ctx context.Context) error {
	var conflicts []string
	last := map[string]int{}
	for i := range c.script.Overlays {
		o := &c.script.Overlays[i]
		err := c.pkg.overlayEntries(ctx, o, c.epoch, func(e overlayEntry) error {
			name := e.header.Name
			folder := e.header.Typeflag == tar.TypeDir
			there := c.chosen.has(name)
			switch {
			case folder && there, there && o.IfExists == "skip":
				return nil
			case there && o.IfExists == "error":
				conflicts = append(conflicts, "/"+name)
				return nil
			}
			if !folder {
				c.overlaid[name] = true
				real, _, _ := c.chosen.resolve(name, false)
				c.chosen.drop(real)
			}
			if before, ok := last[name]; ok && !folder {
				c.overlays[before].header.Name = "" // a later overlay has the same place
			}
			last[name] = len(c.overlays)
			c.overlays = append(c.overlays, e)
			return nil
		})
		if err != nil {
			return err
		}
	}
	c.overlays = slices.DeleteFunc(c.overlays, func(e overlayEntry) bool { return e.header.Name == "" })
	c.chosen.promote()
	if len(conflicts) > 0 {
		return fault.Conflictf("overlays with if_exists = \"error\" meet files of the container: %s", strings.Join(conflicts, ", "))
	}
	return nil
}

var inits = []string{"sbin/init", "lib/systemd/systemd", "usr/lib/systemd/systemd", "etc/init", "bin/init"}

// verify looks for what a machine needs, as the agent does at boot.
func (c *content) verify() error {
	if init := c.script.Guest.Init; init != "" && !c.present(init) {
		return fault.Invalidf("guest.init: %s is not in the file system; export it, or name another program", init)
	}
	for _, i := range inits {
		if c.chosen.has(i) && !c.present(i) && c.script.Guest.Init == "" {
			c.warnings = append(c.warnings, fmt.Sprintf("/%s is a link to %s, which is not exported; the agent will be the first process", i, c.chosen.entries[i].link))
			break
		}
	}
	if c.script.Guest.Prepared() && !c.present("bin/sh") {
		c.warnings = append(c.warnings, "there is no /bin/sh: 'vers connect' and 'vers exec' with a command line will not work")
	}
	for _, name := range c.script.Export.Directories.Include {
		real, _, _ := c.chosen.resolve(name, false)
		if e := c.chosen.entries[real]; e != nil && e.kind == tar.TypeSymlink && e.selected && !c.present(name) {
			c.warnings = append(c.warnings, fmt.Sprintf("%s is a link to %s, which is not exported", name, e.link))
		}
	}
	return nil
}

// present reports whether a path leads to something in the file system, to the end of its links.
func (c *content) present(name string) bool {
	real, links, ok := c.chosen.resolve(name, true)
	for _, link := range links {
		if !c.chosen.entries[link].selected {
			return c.overlaid[inside(name)]
		}
	}
	e := c.chosen.entries[real]
	return ok && e != nil && e.selected || c.overlaid[real] || c.overlaid[inside(name)]
}

// write writes the archive.
func (c *content) write(ctx context.Context, w io.Writer) error {
	out := tar.NewWriter(w)
	archive, err := c.state.read()
	if err != nil {
		return err
	}
	defer archive.Close()
	if err := c.writeExport(tar.NewReader(readerWithContext{ctx, archive}), out); err != nil {
		return fmt.Errorf("filter the container's files: %w", err)
	}
	for _, e := range append(c.created(), c.overlays...) {
		if err := e.write(out); err != nil {
			return fmt.Errorf("write /%s: %w", e.header.Name, err)
		}
	}
	return out.Close()
}

func (c *content) writeExport(in *tar.Reader, out *tar.Writer) error {
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := inside(h.Name)
		e := c.chosen.entries[name]
		switch {
		case e == nil:
			continue
		case e.promoted != "" && !e.selected:
			name = e.promoted
		case !e.selected:
			continue
		case h.Typeflag == tar.TypeLink:
			target := c.chosen.base(name)
			if base := c.chosen.entries[target]; base != nil && !base.selected {
				target = base.promoted
			}
			if target == name {
				continue // written where its content was
			}
			h.Linkname = target
		}
		h.Name = name
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		c.plain(h)
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("/%s: %w", name, err)
		}
		if _, err := io.Copy(out, in); err != nil {
			return fmt.Errorf("/%s: %w", name, err)
		}
	}
}

// plain makes a header that was read one that can be written: with its time, and holes as zeroes, of which rootfs makes
// holes again.
func (c *content) plain(h *tar.Header) {
	h.Format = tar.FormatPAX
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if h.ModTime.After(c.newest) {
		h.ModTime = c.epoch
	}
	if h.Typeflag == tar.TypeGNUSparse || h.Typeflag == '\x00' {
		h.Typeflag = tar.TypeReg
	}
	h.Uname, h.Gname = "", ""
	for key := range h.PAXRecords {
		if !strings.HasPrefix(key, "SCHILY.xattr.") {
			delete(h.PAXRecords, key)
		}
	}
}

// created is what [export] and [guest] make.
func (c *content) created() []overlayEntry {
	var entries []overlayEntry
	header := func(name string, kind byte, mode int64) tar.Header {
		return tar.Header{Name: name, Typeflag: kind, Mode: mode, ModTime: c.epoch, Format: tar.FormatPAX}
	}
	folders := slices.Clone(c.script.Export.Directories.Create)
	slices.SortStableFunc(folders, func(a, b string) int { return strings.Count(inside(a), "/") - strings.Count(inside(b), "/") })
	for _, name := range folders {
		if name = inside(name); name != "" && !c.chosen.has(name) {
			mode := int64(0o755)
			if path.Base(name) == "tmp" {
				mode = 0o1777
			}
			entries = append(entries, overlayEntry{header: header(name+"/", tar.TypeDir, mode)})
		}
	}
	for _, name := range c.script.Export.Files.Create {
		if name = inside(name); !c.chosen.has(name) {
			entries = append(entries, overlayEntry{header: header(name, tar.TypeReg, 0o644)})
		}
	}
	if init := c.script.Guest.Init; init != "" && inside(init) != inits[0] {
		h := header(inits[0], tar.TypeSymlink, 0o777)
		h.Linkname = path.Clean(init)
		entries = append(entries, overlayEntry{header: h})
	}
	if ssh := c.script.Guest.SSH; ssh != nil && !*ssh {
		entries = append(entries, overlayEntry{header: header(noSSH, tar.TypeReg, 0o644)})
	}
	return entries
}

// readerWithContext ends reading when the context does.
type readerWithContext struct {
	ctx context.Context
	r   io.Reader
}

func (r readerWithContext) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// kept are the overlays that preparing the file system for VMs must leave alone.
func (c *content) kept() []string {
	return slices.DeleteFunc(slices.Clone(rootfs.Mended), func(name string) bool { return !c.overlaid[inside(name)] })
}
