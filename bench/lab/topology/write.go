package topology

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// FileName is the name of the object's file in a directory written by Write.
func FileName(r Ref) string {
	kind, _, _ := strings.Cut(strings.ToLower(r.Kind), ".")
	if r.Namespace == "" {
		return kind + "-" + r.Name + ".yaml"
	}
	return kind + "-" + r.Namespace + "-" + r.Name + ".yaml"
}

// Write brings the directory in step with the cluster: one file for each object, each replaced in one step (a reader
// sees the old content or the new one), files whose content is right left alone. Files that earlier calls wrote for
// objects that are gone are removed; written is the caller's memory of those, by file name, and may start empty.
func (c *Cluster) Write(dir string, written map[string]bool) error {
	wanted := make(map[string]bool)
	for _, ref := range c.order {
		name := FileName(ref)
		wanted[name], written[name] = true, true
		content, err := yaml.Marshal(c.objects[ref])
		if err != nil {
			return fmt.Errorf("encode %s: %w", ref, err)
		}
		if err := replaceFile(filepath.Join(dir, name), content); err != nil {
			return err
		}
	}
	for name := range written {
		if wanted[name] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove manifest: %w", err)
		}
		delete(written, name)
	}
	return nil
}

func replaceFile(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	// Directory sources skip names that begin with a dot.
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temporary, content, 0o644); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}
