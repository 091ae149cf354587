package enginetest

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vers/internal/build/engine"
	"vers/internal/fault"
)

// recall tries engines that know builds again: what they answer is what was built of the same, as long as it would be.
func (s *suite) recall(t *testing.T) {
	recaller, ok := s.Engine.(engine.Recaller)
	if !ok {
		t.Skip("this engine knows no build again")
	}
	const name = "vers-test/moving:1"
	load := func(content string) {
		t.Helper()
		base := bytes.NewBuffer(bytes.TrimRight(Base(t), "\x00"))
		base.Write(make([]byte, 512-base.Len()%512)) // the header before it is whole, its end mark is gone
		w := tar.NewWriter(base)
		err := w.WriteHeader(&tar.Header{Name: "moved", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
		if err == nil {
			_, err = w.Write([]byte(content))
		}
		if err == nil {
			err = w.Close()
		}
		if err == nil {
			_, err = s.Engine.Load(soon(t), name, base, engine.Config{Env: []string{"PATH=/bin"}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	load("1")
	dir := write(t, map[string]string{"file": "1", "Dockerfile": "FROM " + name + "\nARG A=0\nCOPY file /file\nRUN cat /proc/sys/kernel/random/uuid > /made\n"})
	this := engine.Build{Context: dir, Pull: engine.PullNever, Network: engine.NetworkNone, Inputs: "sha256:first"}
	unknown := func(why string, b engine.Build) {
		t.Helper()
		if image, err := recaller.Recall(soon(t), b); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %+v, %v", why, image, err)
		}
	}
	build := func(b engine.Build) (engine.Image, string) {
		t.Helper()
		var log bytes.Buffer
		b.Log = &log
		image, err := s.Engine.Build(soon(t), b)
		if err != nil {
			t.Fatalf("%v\n%s", err, log.String())
		}
		return image, log.String()
	}
	known := func(why string, b engine.Build, want engine.Image) {
		t.Helper()
		b.Context = ""
		image, err := recaller.Recall(soon(t), b)
		if err != nil || image.Digest != want.Digest || len(image.Config.Env) == 0 {
			t.Errorf("%s: %+v, %v, want %s", why, image, err, want.Digest)
		}
	}
	unknown("before it was built", this)
	first, _ := build(this)
	known("built", this, first)
	if again, log := build(this); again.Digest != first.Digest || strings.Contains(log, "STEP") {
		t.Errorf("built again: %s, before %s; log: %s", again.Digest, first.Digest, log)
	}
	for why, change := range map[string]func(*engine.Build){
		"another folder":     func(b *engine.Build) { b.Inputs = "sha256:second" },
		"an unknown folder":  func(b *engine.Build) { b.Inputs = "" },
		"another Dockerfile": func(b *engine.Build) { b.Dockerfile = "Dockerfile.other" },
		"another argument":   func(b *engine.Build) { b.Args = map[string]string{"A": "1"} },
		"another stage":      func(b *engine.Build) { b.Target = "other" },
		"another platform":   func(b *engine.Build) { b.Platform = "linux/arm64" },
		"another network":    func(b *engine.Build) { b.Network = engine.NetworkDefault },
		"asked for anew":     func(b *engine.Build) { b.Pull = engine.PullAlways },
	} {
		b := this
		change(&b)
		unknown(why, b)
	}
	fresh := this
	fresh.NoCache = true
	second, log := build(fresh)
	if second.Digest == first.Digest || !strings.Contains(log, "STEP") {
		t.Errorf("without cache it was not built: %s", log)
	}
	known("after a build without cache", this, second)

	// The name of the base has come to mean another image.
	load("2")
	unknown("the base moved", this)
	moved, _ := build(this)
	expect(t, s.tree(t, moved), "/moved", "2")
	known("built on the new base", this, moved)

	// What a step may get from elsewhere is not in the folder's digest.
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+name+"\nARG FROM=file\nADD $FROM /file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	this.Inputs = "sha256:added"
	build(this)
	unknown("an ADD that may be of a URL", this)
}
