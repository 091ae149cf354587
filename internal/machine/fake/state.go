package fake

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vers/internal/machine/testguest"
)

// Device states of this driver are a magic, the attempts the guest had made, and the files of its root as tar.
const stateMagic = "vers fake device state\n"

func encodeState(c testguest.Counters, files []byte) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte(stateMagic), c.Attempts), files...)
}

func decodeState(data []byte) (attempts uint32, files []byte, ok bool) {
	rest, ok := bytes.CutPrefix(data, []byte(stateMagic))
	if !ok || len(rest) < 4 {
		return 0, nil, false
	}
	return binary.LittleEndian.Uint32(rest), rest[4:], true
}

func readPage(path string, number int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	page := make([]byte, pageBytes)
	_, err = f.ReadAt(page, number*pageBytes)
	return page, err
}

const pageBytes = 4096

// packFiles archives the directories and regular files below root; without root there are none. The guest writes
// meanwhile, through processes that no pause of ours stops: what disappears is left out.
func packFiles(root string) ([]byte, error) {
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || path == root || !(entry.IsDir() || entry.Type().IsRegular()) {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var data []byte
		if !entry.IsDir() {
			if data, err = os.ReadFile(path); err != nil {
				return skipGone(err)
			}
		}
		info, err := entry.Info()
		if err != nil {
			return skipGone(err)
		}
		header := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Size: int64(len(data)), Typeflag: tar.TypeReg}
		if entry.IsDir() {
			header.Typeflag = tar.TypeDir
		}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err = archive.Write(data)
		return err
	})
	return out.Bytes(), errors.Join(err, archive.Close())
}

func skipGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// unpackFiles makes the files below root again.
func unpackFiles(root string, files []byte) error {
	archive := tar.NewReader(bytes.NewReader(files))
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(root, header.Name)
		if header.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o700)
		} else if data, rerr := io.ReadAll(archive); rerr != nil {
			err = rerr
		} else {
			err = os.WriteFile(path, data, fs.FileMode(header.Mode))
		}
		if err != nil {
			return err
		}
	}
}
