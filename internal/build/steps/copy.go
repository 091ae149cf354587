package steps

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"vers/internal/build/dockerfile"
	"vers/internal/build/source"
	"vers/internal/fault"
	"vers/internal/guest"
)

// copying is a COPY or ADD with its variables put in.
type copying struct {
	Sources []string
	Target  string // absolute
	Into    bool   // it is a folder whatever it is now
	Owner   string
	Mode    *fs.FileMode
}

// copy carries out COPY and ADD.
func (s *stage) copy(ctx context.Context, i dockerfile.Instruction) error {
	c, err := s.copying(i)
	if err != nil {
		return err
	}
	if i.Flag("from") != "" {
		return s.copyFrom(ctx, i, c)
	}
	tree := s.b.req.Context
	if len(i.Files) > 0 {
		if tree, err = s.documents(ctx, i, c); err != nil {
			return err
		}
		defer tree.Close()
		for n := range c.Sources {
			c.Sources[n] = strings.TrimPrefix(c.Sources[n], "<<")
		}
	}
	selection, err := tree.Select(c.Sources, c.Into, source.Options{Mode: c.Mode, Where: "the context"})
	if err != nil {
		return err
	}
	if i.Name == dockerfile.Add && len(selection.Archives) > 0 {
		return fault.Invalidf("ADD does not unpack %s here: COPY it, and RUN tar -x", selection.Archives[0])
	}
	_, err = s.cached(ctx, []string{s.key(i.Name, c, selection.Hash())}, func(ctx context.Context, g Guest) error {
		return write(ctx, g, c, selection)
	})
	return err
}

// copying puts variables in.
func (s *stage) copying(i dockerfile.Instruction) (c copying, err error) {
	words := make([]string, len(i.Words))
	for n, word := range i.Words {
		if _, document := i.Heredoc(word); document {
			words[n] = word
			continue
		}
		if words[n], err = s.expand(i, word); err != nil {
			return c, err
		}
		if words[n] == "" {
			return c, fault.Invalidf("%s has an empty path (%s)", i.Name, word)
		}
	}
	last := len(words) - 1
	c.Sources, c.Target = words[:last], words[last]
	base := path.Base(c.Target)
	c.Into = strings.HasSuffix(c.Target, "/") || base == "." || base == ".."
	if !path.IsAbs(c.Target) {
		c.Target = path.Join("/", s.image.WorkingDir, c.Target)
	}
	c.Target = path.Clean(c.Target)
	flag := dockerfile.Instruction{}
	if c.Owner, err = s.expand(flag, i.Flag("chown")); err != nil {
		return c, err
	}
	mode, err := s.expand(flag, i.Flag("chmod"))
	if err != nil || mode == "" {
		return c, err
	}
	bits, err := strconv.ParseUint(mode, 8, 32)
	if err != nil || bits > 0o7777 {
		return c, fault.Invalidf("--chmod=%s is not possible: give permissions as octal digits, for example 755", mode)
	}
	m := fs.FileMode(bits & 0o777)
	for _, special := range []struct {
		bit  uint64
		mode fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if bits&special.bit != 0 {
			m |= special.mode
		}
	}
	c.Mode = &m
	return c, nil
}

// documents makes files of an instruction's heredocs.
func (s *stage) documents(ctx context.Context, i dockerfile.Instruction, c copying) (*source.Tree, error) {
	if len(i.Files) != len(c.Sources) {
		return nil, fault.Invalidf("%s has documents and files in one line: write two", i.Name)
	}
	var archive bytes.Buffer
	out := tar.NewWriter(&archive)
	for _, h := range i.Files {
		text := h.Text
		if h.Expand {
			var err error
			if text, err = dockerfile.ExpandText(text, s.lookup); err != nil {
				return nil, fault.Invalidf("document %s: %w", h.Name, err)
			}
		}
		if err := errors.Join(out.WriteHeader(&tar.Header{Name: h.Name, Mode: 0o644, Size: int64(len(text))}), write1(out, text)); err != nil {
			return nil, err
		}
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	return s.b.r.Read(ctx, &archive)
}

func write1(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}

// copyFrom carries out COPY --from. Where the other stage is the same as before, its files are not looked at; where it is
// another, they may be the same all the same.
func (s *stage) copyFrom(ctx context.Context, i dockerfile.Instruction, c copying) error {
	from, err := s.b.sourceStage(ctx, s.index, i)
	if err != nil {
		return err
	}
	known := s.key(i.Name, c, from.identity)
	if hit, err := s.hit(ctx, known); hit || err != nil {
		return err
	}
	where := "stage " + from.name
	tree, err := s.b.pack(ctx, from, c.Sources)
	if err != nil {
		return fmt.Errorf("read files of %s: %w", where, err)
	}
	defer tree.Close()
	selection, err := tree.Select(c.Sources, c.Into, source.Options{Mode: c.Mode, KeepOwners: true, Where: where})
	if err != nil {
		return err
	}
	_, err = s.cached(ctx, []string{s.key(i.Name, c, selection.Hash()), known}, func(ctx context.Context, g Guest) error {
		return write(ctx, g, c, selection)
	})
	return err
}

// sourceStage finds what COPY --from names: a stage before this one, or what FROM could name.
func (b *build) sourceStage(ctx context.Context, before int, i dockerfile.Instruction) (*stage, error) {
	n, name, err := b.plan.from(before, i)
	if err != nil {
		return nil, err
	}
	if n >= 0 {
		return b.stages[n], nil
	}
	if known := b.outside[name]; known != nil {
		return known, nil
	}
	s := &stage{b: b, index: -1, name: name}
	b.outside[name] = s
	return s, s.begin(ctx, name)
}

// pack reads files of a stage's machine.
func (b *build) pack(ctx context.Context, from *stage, sources []string) (*source.Tree, error) {
	g, err := from.live(ctx)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(sources))
	for n, p := range sources {
		paths[n] = path.Clean("/" + p)
	}
	archive, err := g.Pack(ctx, guest.PackRequest{Paths: paths})
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	tree, err := b.r.Read(ctx, archive)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, archive); err != nil { // its end says whether it is whole
		tree.Close()
		return nil, err
	}
	return tree, nil
}

// write writes a selection in a guest.
func write(ctx context.Context, g Guest, c copying, selection source.Selection) error {
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(selection.WriteTar(writer)) }()
	err := g.Unpack(ctx, guest.UnpackRequest{Path: c.Target, Into: selection.Single, Owner: c.Owner}, reader)
	reader.CloseWithError(errors.New("the guest takes no more"))
	return err
}

// emptyFolder is an archive of just the folder that it is unpacked to.
func emptyFolder() io.Reader {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	_ = errors.Join(w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}), w.Close()) // to memory: cannot fail
	return &out
}

func hexOf(sum [32]byte) string { return hex.EncodeToString(sum[:]) }
