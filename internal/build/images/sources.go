package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"vers/internal/build/engine"
	"vers/internal/build/inputs"
	"vers/internal/catalog"
	"vers/internal/compression"
	"vers/internal/fault"
)

// Dockerfile says how a folder is built.
type Dockerfile struct {
	Path    string // below the folder; "" Dockerfile
	Args    map[string]string
	Target  string
	NoCache bool
	// Folder is the digest that the client has made of the folder with package inputs; "" it has made none.
	Folder string
}

// Build makes an image of a folder, which comes as a tar archive (plain, gzip or zstd) and is unpacked as it comes. The
// archive is not read at all if the client has told the folder's digest and the organisation's engine knows what became
// of it. What is remembered is what came: a wrong digest leads a client to another image of its own organisation, and
// nobody else.
func (s *Service) Build(ctx context.Context, req Request, d Dockerfile, folder io.Reader) (catalog.Image, error) {
	if err := d.check(); err != nil {
		return catalog.Image{}, err
	}
	m, err := s.begin(ctx, req)
	if err != nil {
		return catalog.Image{}, err
	}
	return m.run(ctx, func(ctx context.Context, dir string, log io.Writer) (content, error) {
		known, ok, err := s.recall(ctx, req, d, log)
		if err != nil {
			return content{}, err
		}
		if ok {
			m.req.Began()
			fmt.Fprintf(log, "Nothing has changed since an earlier build of this folder\n")
			return known, nil
		}
		digest, err := s.unpack(ctx, folder, dir)
		if err != nil {
			return content{}, err
		}
		m.req.Began()
		d.Folder = digest
		return s.build(ctx, req, d, dir, log)
	})
}

// recall finds what the engine has made of the same folder.
func (s *Service) recall(ctx context.Context, req Request, d Dockerfile, log io.Writer) (content, bool, error) {
	if d.Folder == "" || d.NoCache {
		return content{}, false, nil
	}
	eng, err := s.Engines.Engine(ctx, req.OrgID)
	if err != nil {
		return content{}, false, err
	}
	recaller, ok := eng.(engine.Recaller)
	if !ok {
		return content{}, false, nil
	}
	img, err := recaller.Recall(ctx, d.engineBuild("", log))
	if fault.Is(err, fault.NotFound) {
		return content{}, false, nil
	}
	return exported(eng, img, "dockerfile", d.Path), err == nil, err
}

func (d Dockerfile) engineBuild(dir string, log io.Writer) engine.Build {
	return engine.Build{Context: dir, Dockerfile: d.Path, Args: d.Args, Target: d.Target, NoCache: d.NoCache, Inputs: d.Folder, Log: log}
}

func (d *Dockerfile) check() error {
	if d.Path == "" {
		d.Path = "Dockerfile"
	}
	clean := path.Clean(strings.TrimPrefix(filepath.ToSlash(d.Path), "./"))
	if !fs.ValidPath(clean) || clean == "." || len(d.Path) > 4096 {
		return fault.Invalidf("Dockerfile %q is not below the folder that is built", d.Path)
	}
	d.Path = clean
	if d.Folder != "" && !inputs.Valid(d.Folder) {
		return fault.Invalidf("the folder's digest %.100q is not sha256: and 64 hexadecimal digits", d.Folder)
	}
	return nil
}

// build runs a Dockerfile. Nothing of the folder is followed out of it: it was made by a stranger.
func (s *Service) build(ctx context.Context, req Request, d Dockerfile, dir string, log io.Writer) (content, error) {
	eng, err := s.Engines.Engine(ctx, req.OrgID)
	if err != nil {
		return content{}, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return content{}, err
	}
	info, err := root.Stat(d.Path)
	root.Close()
	if err != nil || !info.Mode().IsRegular() {
		return content{}, fault.Invalidf("Dockerfile '%s' not found in what was uploaded", d.Path)
	}
	fmt.Fprintf(log, "Building with the engine %s\n", eng.Name())
	img, err := eng.Build(ctx, d.engineBuild(dir, log))
	if err != nil {
		return content{}, stepFault(err)
	}
	return exported(eng, img, "dockerfile", d.Path), nil
}

// stepFault makes a failed step the fault of who wrote it.
func stepFault(err error) error {
	var step *engine.StepError
	if errors.As(err, &step) && fault.Is(err, fault.Internal) {
		return fault.Invalidf("build failed: %w", err)
	}
	return err
}

func exported(eng engine.Engine, img engine.Image, kind, from string) content {
	return content{kind: kind, source: from, config: catalog.ImageConfig(img.Config), origin: eng.Name() + " " + img.Digest,
		write: func(ctx context.Context, w io.Writer) error { return eng.Export(ctx, img, w) }}
}

// Create makes an image of one in a registry, in the background: Status says how far it is.
func (s *Service) Create(ctx context.Context, req Request, ref engine.Reference) (catalog.ImageJob, error) {
	if strings.TrimSpace(ref.Name) == "" {
		return catalog.ImageJob{}, fault.Invalidf("image_ref is empty; give the name of a Docker image, for example debian:12")
	}
	m, err := s.begin(ctx, req)
	if err != nil {
		return catalog.ImageJob{}, err
	}
	job := m.job
	go func() {
		// Its end is recorded with the job, and logged.
		_, _ = m.run(s.life, func(ctx context.Context, _ string, _ io.Writer) (content, error) { return s.pull(ctx, req, ref) })
	}()
	return job, nil
}

func (s *Service) pull(ctx context.Context, req Request, ref engine.Reference) (content, error) {
	eng, err := s.Engines.Engine(ctx, req.OrgID)
	if err != nil {
		return content{}, err
	}
	img, err := eng.Resolve(ctx, ref)
	if err != nil {
		return content{}, err
	}
	return exported(eng, img, "docker", ref.Name), nil
}

// Upload makes an image of a tar archive (plain, gzip or zstd): of the folder of a Dockerfile if one is at its top, else (and
// with Request.RootFS) it is a root file system itself, which is run as config says.
func (s *Service) Upload(ctx context.Context, req Request, config catalog.ImageConfig, archive io.Reader) (catalog.Image, error) {
	m, err := s.begin(ctx, req)
	if err != nil {
		return catalog.Image{}, err
	}
	return m.run(ctx, func(ctx context.Context, dir string, log io.Writer) (content, error) {
		spool := filepath.Join(dir, "upload")
		if err := s.spool(ctx, archive, spool); err != nil {
			return content{}, err
		}
		m.req.Began()
		isFolder := false
		if !req.RootFS {
			if isFolder, err = hasDockerfile(ctx, spool); err != nil {
				return content{}, err
			}
		}
		if !isFolder {
			return content{kind: "upload", config: config,
				write: func(ctx context.Context, w io.Writer) error { return copySpool(ctx, spool, w) }}, nil
		}
		folder := filepath.Join(dir, "folder")
		if err := os.Mkdir(folder, 0o700); err != nil {
			return content{}, err
		}
		file, err := os.Open(spool)
		if err != nil {
			return content{}, err
		}
		defer file.Close()
		digest, err := s.unpack(ctx, file, folder)
		if err != nil {
			return content{}, err
		}
		return s.build(ctx, req, Dockerfile{Path: "Dockerfile", Folder: digest}, folder, log)
	})
}

// spool keeps an upload in a file, since what it is shows only at its end.
func (s *Service) spool(ctx context.Context, archive io.Reader, path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, io.LimitReader(reading{ctx, archive}, s.Context.Bytes+1))
	if info, serr := file.Stat(); err == nil && serr == nil && info.Size() > s.Context.Bytes {
		err = s.tooMuch()
	}
	return errors.Join(err, file.Close())
}

// ErrTooLarge is in the chain of errors about uploads that are too large.
var ErrTooLarge = errors.New("too large")

func (s *Service) tooMuch() error {
	return fault.Exhaustedf("what was uploaded is %w for this server, which takes %d MiB: remove what is not needed from the folder; a .dockerignore does not keep files from being uploaded", ErrTooLarge, s.Context.Bytes>>20)
}

// hasDockerfile looks for a Dockerfile at the top of an archive.
func hasDockerfile(ctx context.Context, spool string) (found bool, err error) {
	file, err := os.Open(spool)
	if err != nil {
		return false, err
	}
	defer file.Close()
	plain, err := compression.Decompress(reading{ctx, file})
	if err != nil {
		return false, badArchive(ctx, err)
	}
	defer plain.Close()
	for archive := tar.NewReader(plain); ; {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return false, badArchive(ctx, err)
		}
		found = found || path.Clean("/"+entry.Name) == "/Dockerfile" && entry.Typeflag == tar.TypeReg
	}
}

func copySpool(ctx context.Context, spool string, w io.Writer) error {
	file, err := os.Open(spool)
	if err != nil {
		return err
	}
	defer file.Close()
	plain, err := compression.Decompress(reading{ctx, file})
	if err != nil {
		return badArchive(ctx, err)
	}
	defer plain.Close()
	if _, err = io.Copy(w, plain); err != nil {
		return badArchive(ctx, err)
	}
	return nil
}

// badArchive says that an archive is broken, or why it could not be read to its end.
func badArchive(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !fault.Is(err, fault.Internal):
		return err
	case errors.Is(err, io.ErrClosedPipe), isFileError(err):
		return err
	}
	return fault.Invalidf("the archive cannot be read: %w", err)
}

func isFileError(err error) bool {
	var file *fs.PathError
	var link *os.LinkError
	return errors.As(err, &file) || errors.As(err, &link)
}

// reading ends when its context does.
type reading struct {
	ctx context.Context
	r   io.Reader
}

func (r reading) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
