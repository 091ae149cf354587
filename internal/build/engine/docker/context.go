package docker

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"vers/internal/fault"
)

// buildContext is the folder of a build. Nothing is read through links that lead out of it.
type buildContext struct {
	root       *os.Root
	dockerfile string // below root, with slashes
	text       []byte // of the Dockerfile
	ignore     *patternmatcher.PatternMatcher
	err        error // of the archive, once its reader has been closed
}

func openContext(dir, dockerfile string) (_ *buildContext, err error) {
	if dockerfile == "" {
		dockerfile = "Dockerfile"
	}
	c := &buildContext{dockerfile: path.Clean(filepath.ToSlash(dockerfile))}
	if c.root, err = os.OpenRoot(dir); err != nil {
		return nil, fault.Invalidf("open the folder of the build: %w", err)
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.text, err = c.root.ReadFile(c.dockerfile); err != nil {
		return nil, fault.Invalidf("read the Dockerfile %s: %w", dockerfile, err)
	}
	if len(c.text) == 0 {
		return nil, fault.Invalidf("the Dockerfile %s is empty", dockerfile)
	}
	return c, c.readIgnore()
}

func (c *buildContext) close() { _ = c.root.Close() }

// readIgnore reads the Dockerfile's own ignore file, or the folder's.
func (c *buildContext) readIgnore() error {
	for _, name := range []string{c.dockerfile + ".dockerignore", ".dockerignore"} {
		file, err := c.root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fault.Invalidf("read %s: %w", name, err)
		}
		defer file.Close()
		lines, err := ignorefile.ReadAll(file)
		if err != nil {
			return fault.Invalidf("read %s: %w", name, err)
		}
		// The daemon needs these two; the exceptions come last and win.
		lines = append(lines, "!"+c.dockerfile, "!.dockerignore")
		if c.ignore, err = patternmatcher.New(lines); err != nil {
			return fault.Invalidf("%s: %w", name, err)
		}
		return nil
	}
	return nil
}

// archive is the folder as a tar archive without what is ignored. end waits until nobody reads the folder any more.
func (c *buildContext) archive() (r io.Reader, end func()) {
	read, write := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w := tar.NewWriter(write)
		err := c.walk(w, ".", patternmatcher.MatchInfo{})
		if err == nil {
			err = w.Close()
		}
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			c.err = err
		}
		_ = write.CloseWithError(err)
	}()
	return read, func() {
		_ = read.Close()
		<-done
	}
}

func (c *buildContext) walk(w *tar.Writer, dir string, above patternmatcher.MatchInfo) error {
	folder, err := c.root.Open(dir)
	if err != nil {
		return err
	}
	entries, err := folder.ReadDir(-1)
	_ = folder.Close()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := path.Join(dir, entry.Name())
		ignored, info := false, above
		if c.ignore != nil {
			if ignored, info, err = c.ignore.MatchesUsingParentResults(filepath.FromSlash(name), above); err != nil {
				return err
			}
		}
		if !ignored {
			if err := c.add(w, name); err != nil {
				return err
			}
		}
		// Something in an ignored folder may be taken in again.
		if entry.IsDir() && (!ignored || c.ignore.Exclusions()) {
			if err := c.walk(w, name, info); err != nil {
				return err
			}
		}
	}
	return nil
}

// add writes one entry; sockets, and what went meanwhile, are left out.
func (c *buildContext) add(w *tar.Writer, name string) error {
	info, err := c.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = c.root.Readlink(name); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name = name
	if info.IsDir() {
		header.Name += "/"
	}
	// What is copied belongs to root, whoever made the folder.
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
	if !info.Mode().IsRegular() {
		return w.WriteHeader(header)
	}
	file, err := c.root.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.CopyN(w, file, header.Size)
	return err
}
