package bake

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"vers/api"
	"vers/internal/build/dockerfile"
	"vers/internal/config"
	"vers/internal/fault"
)

// format is part of every mark: another one where the same definition is built in another way.
const format = "1"

// Files of a definition that are not for the build.
const (
	dockerfileName = "Dockerfile"
	checkName      = "check"
)

// composedName is the Dockerfile that is really built: the definition's with the host's settings around it.
const composedName = ".vers-bake.Dockerfile"

// definition is a supported image as it is written down.
type definition struct {
	files  map[string]file // by path in its folder
	text   string          // Dockerfile
	parsed dockerfile.File
	checks []string // scripts
	config api.VMConfig
	digest string
}

type file struct {
	data []byte
	mode fs.FileMode
}

// names lists the images that there are definitions of, those first that others are made of.
func names(definitions fs.FS) ([]string, error) {
	entries, err := fs.ReadDir(definitions, ".")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if _, err := fs.Stat(definitions, path.Join(e.Name(), dockerfileName)); err == nil {
			found = append(found, e.Name())
		}
	}
	rank := func(name string) int {
		if i := slices.Index(order, name); i >= 0 {
			return i
		}
		return len(order)
	}
	sort.SliceStable(found, func(i, j int) bool { return rank(found[i]) < rank(found[j]) })
	return found, nil
}

// choose gives the wanted images in the order they are baked in.
func choose(known, wanted []string) ([]string, error) {
	for _, name := range wanted {
		if !slices.Contains(known, name) {
			return nil, fault.Invalidf("there is no supported image %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	if len(wanted) == 0 {
		return known, nil
	}
	return slices.DeleteFunc(slices.Clone(known), func(name string) bool { return !slices.Contains(wanted, name) }), nil
}

func readDefinition(definitions fs.FS, name string) (d definition, err error) {
	d.files = map[string]file{}
	folder, err := fs.Sub(definitions, name)
	if err != nil {
		return d, err
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%s\n", format)
	err = fs.WalkDir(folder, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(folder, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(hash, "%q %d\n%s", path, len(data), data)
		mode := fs.FileMode(0o644) // embedded files have lost theirs
		if bytes.HasPrefix(data, []byte("#!")) {
			mode = 0o755
		}
		d.files[path] = file{data, mode}
		return nil
	})
	if err != nil {
		return d, fmt.Errorf("read the definition of %s: %w", name, err)
	}
	if shared, err := fs.ReadFile(definitions, checkName); err == nil {
		fmt.Fprintf(hash, "%s", shared)
		d.checks = append(d.checks, string(shared))
	}
	d.checks = append(d.checks, string(d.files[checkName].data))
	d.digest = hex.EncodeToString(hash.Sum(nil))
	d.text = string(d.files[dockerfileName].data)
	if d.parsed, err = dockerfile.Parse(d.files[dockerfileName].data); err != nil {
		return d, fmt.Errorf("definition of %s: %w", name, err)
	}
	d.config, err = machineOf(d.files[config.ProjectFile].data)
	return d, err
}

// machineOf reads the sizes in a vers.toml.
func machineOf(data []byte) (api.VMConfig, error) {
	p, err := config.ParseProject(config.ProjectFile, data)
	m := p.Machine
	return api.VMConfig{MemSizeMiB: &m.MemSizeMiB, VCPUCount: &m.VCPUCount, FSSizeMiB: &m.FSSizeMiB,
		ImageName: &p.RootFS.Name, KernelName: &p.Kernel.Name}, err
}

// bases lists what the build begins with or copies from that is not made by itself.
func (d definition) bases() []string {
	var found []string
	add := func(name string, before int) {
		if _, ok := d.parsed.Stage(name, before); !ok && name != "" && name != dockerfile.Scratch && !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	for i, stage := range d.parsed.Stages {
		add(stage.Base, i)
		for _, step := range stage.Steps {
			add(step.Flag("from"), i)
		}
	}
	return found
}

// baseDigests gives what the bases are now: the digest of an image, the commit of a tag.
func (b *baking) baseDigests(ctx context.Context) (map[string]string, error) {
	digests := map[string]string{}
	for _, base := range b.bases() {
		repo, tag, isTag := strings.Cut(base, ":")
		if isTag {
			t, err := b.Client.RepoTag(ctx, repo, tag)
			if api.StatusOf(err) == 404 {
				return nil, fault.NotFoundf("it is made with %s, which is not there: bake %s first", base, repo)
			}
			if err != nil {
				return nil, err
			}
			digests[base] = t.CommitID
			continue
		}
		image, err := b.Client.Image(ctx, base)
		if err != nil {
			return nil, fmt.Errorf("image %s, which it is made of: %w", base, err)
		}
		digests[base] = image.Digest
	}
	return digests, nil
}

// mark says in a description what an image was made of.
func (d definition) mark(bases map[string]string) string {
	hash := sha256.New()
	fmt.Fprintf(hash, "%s\n", d.digest)
	for _, base := range d.bases() {
		fmt.Fprintf(hash, "%q %q\n", base, bases[base])
	}
	return "made of " + hex.EncodeToString(hash.Sum(nil))[:32]
}

// hostStage begins the names of stages that hold a host's settings.
const hostStage = "vers-host-"

// compose puts the host's settings into everything that the definition begins with, and takes them out at the end. Steps
// are known for a day: then packages are fetched anew.
func (d definition) compose(host *Host, now time.Time) (definition, error) {
	if host == nil {
		files := map[string]file{composedName: {[]byte(d.text), 0o644}}
		d.files = withFiles(d.files, files)
		return d, nil
	}
	if _, taken := d.files[hostFolder]; taken {
		return d, fault.Invalidf("the definition has a file %s", hostFolder)
	}
	lines := strings.Split(d.text, "\n")
	var before []string
	stages := map[string]string{}
	for i, stage := range d.parsed.Stages {
		if _, own := d.parsed.Stage(stage.Base, i); own || stage.Base == dockerfile.Scratch {
			continue
		}
		name, known := stages[stage.Base]
		if !known {
			name = fmt.Sprintf("%s%d", hostStage, len(stages))
			stages[stage.Base] = name
			before = append(before, "FROM "+stage.Base+" AS "+name, "ARG VERS_BAKED="+now.UTC().Format(time.DateOnly),
				"COPY "+hostFolder+"/ "+hostPath+"/", "RUN sh "+hostPath+"/"+enterName)
		}
		lines[stage.Line-1] = strings.Replace(lines[stage.Line-1], stage.Base, name, 1)
	}
	text := strings.Join(append(before, lines...), "\n") + "\nRUN sh " + hostPath + "/" + leaveName + "\n"
	files := map[string]file{composedName: {[]byte(text), 0o644}}
	for name, data := range host.files() {
		files[path.Join(hostFolder, name)] = file{data, 0o644}
	}
	d.files = withFiles(d.files, files)
	return d, nil
}

func withFiles(all, more map[string]file) map[string]file {
	files := make(map[string]file, len(all)+len(more))
	for _, some := range []map[string]file{all, more} {
		for name, f := range some {
			files[name] = f
		}
	}
	return files
}

// archive is the definition's folder as the server takes it.
func (d definition) archive() (io.Reader, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	paths := make([]string, 0, len(d.files))
	for name := range d.files {
		paths = append(paths, name)
	}
	sort.Strings(paths)
	for _, name := range paths {
		f := d.files[name]
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: int64(f.mode), Size: int64(len(f.data)), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return &out, w.Close()
}
