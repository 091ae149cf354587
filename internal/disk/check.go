package disk

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// Check reads the structure of a qcow2 layer that nobody writes to: header, tables, and that every cluster they name is
// in the file; of the last one, a part may be missing. It does not look at the files below, and knows nothing of the
// content. Clusters that nothing refers to are no fault: they are lost space. An error wraps fs.ErrNotExist if there is no such file.
func Check(ctx context.Context, path string) error {
	info, err := Stat(path)
	if err != nil {
		return err
	}
	if info.Format != "qcow2" {
		return fmt.Errorf("%s is not qcow2: it is damaged", path)
	}
	if err := checkL1(path); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	image, err := json.Marshal(map[string]any{
		"driver": "qcow2", "backing": nil,
		"file": &node{Driver: "file", Name: absolute, Locking: "off", ReadOnly: true},
	})
	if err != nil {
		return err
	}
	const onlyLeaks = 3
	err = qemuImg(ctx, "check", "-q", "-U", "json:"+string(image))
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == onlyLeaks {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s is damaged or cannot be read: %w", path, err)
	}
	return nil
}

// checkL1 makes sure that the file has its topmost table. What is missing of it QEMU reads as zeroes: an empty layer.
func checkL1(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	header := make([]byte, headerSizeV2)
	if _, err := io.ReadFull(f, header); err != nil {
		return err
	}
	entries, offset := uint64(binary.BigEndian.Uint32(header[36:])), binary.BigEndian.Uint64(header[40:])
	if size := uint64(st.Size()); offset > size || entries*8 > size-offset {
		return fmt.Errorf("it has %d bytes, and its table of %d entries would be at byte %d: it is cut off", size, entries, offset)
	}
	return nil
}
