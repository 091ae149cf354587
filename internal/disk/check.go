package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
)

// Check reads the structure of a qcow2 layer that nobody writes to: header, tables, and that every cluster they name is
// in the file. It does not look at the files below, and knows nothing of the content. Clusters that nothing refers to are
// no fault: they are lost space. An error wraps fs.ErrNotExist if there is no such file.
func Check(ctx context.Context, path string) error {
	info, err := Stat(path)
	if err != nil {
		return err
	}
	if info.Format != "qcow2" {
		return fmt.Errorf("%s is not qcow2: it is damaged", path)
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
