package rootfs

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A tree of 300,000 files, some larger than a block, comes as a stream of unknown length; nothing knows before how many
// files there will be. The file system has room for all of them and takes hardly more than they do.
func TestManyFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("300,000 files take half a minute")
	}
	needRoot(t)
	const folders, files = 300, 1000
	r, w := io.Pipe()
	go func() {
		out := tar.NewWriter(w)
		content := make([]byte, 5000)
		for i := range content {
			content[i] = 'x'
		}
		err := func() error {
			for d := range folders {
				for f := range files {
					size := f % 7 * 10
					if f%50 == 0 {
						size = len(content)
					}
					hdr := &tar.Header{Name: fmt.Sprintf("folder-%d/file-%d", d, f), Typeflag: tar.TypeReg, Mode: 0o644, Uid: d, Size: int64(size), ModTime: when, Format: tar.FormatPAX}
					if err := out.WriteHeader(hdr); err != nil {
						return err
					}
					if _, err := out.Write(content[:size]); err != nil {
						return err
					}
				}
			}
			return out.Close()
		}()
		w.CloseWithError(err)
	}()
	path, began := filepath.Join(t.TempDir(), "image"), time.Now()
	result, err := Write(t.Context(), r, path, Options{})
	must(t, err)
	t.Logf("%v, %+v", time.Since(began), result)
	if result.Entries != folders*files+folders+1 || result.SizeBytes > 2<<30 || result.UsedBytes > 3<<29 {
		t.Errorf("%+v", result)
	}
	tool(t, "e2fsck", "-fn", path)
	image, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer image.Close()
	must(t, useMount(t.Context(), image, "ext4", "", func(root int) error {
		found := 0
		for d := range folders {
			entries, err := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d/folder-%d", root, d))
			must(t, err)
			found += len(entries)
		}
		var st unix.Stat_t
		must(t, unix.Fstatat(root, "folder-299/file-950", &st, unix.AT_SYMLINK_NOFOLLOW))
		if found != folders*files || st.Size != 5000 || st.Uid != 299 {
			t.Errorf("%d files, the last but 49 of %d bytes and user %d", found, st.Size, st.Uid)
		}
		return nil
	}))
}
