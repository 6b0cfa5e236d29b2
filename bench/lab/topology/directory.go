package topology

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Directory is a cluster as files: written by the lab, read by agents, edited by people. Each object has a file of its
// own unless somebody else wrote it into another one, where it then stays.
type Directory struct {
	path string
	// file is where each object is kept, relative to path.
	file map[Ref]string
	// known is each object as it was last read or written.
	known map[Ref]string
}

// NewDirectory is the directory at path, which exists. Nothing is read or written yet.
func NewDirectory(path string) *Directory {
	return &Directory{path: path, file: make(map[Ref]string), known: make(map[Ref]string)}
}

// Path is where the directory is.
func (d *Directory) Path() string { return d.path }

// Write brings the files in step with the cluster. Files whose objects are as they were are not touched; others are
// replaced in one step, so that a reader sees the old content or the new.
func (d *Directory) Write(c *Cluster) error {
	contents := make(map[string][]string)
	stale := make(map[string]bool)
	now := make(map[Ref]string)
	for _, ref := range c.order {
		b, err := yaml.Marshal(c.objects[ref])
		if err != nil {
			return fmt.Errorf("encode %s: %w", ref, err)
		}
		now[ref] = string(b)
		name, ok := d.file[ref]
		if !ok {
			name = FileName(ref)
			d.file[ref] = name
		}
		contents[name] = append(contents[name], now[ref])
		if d.known[ref] != now[ref] {
			stale[name] = true
		}
	}
	for ref, name := range d.file {
		if c.objects[ref] == nil {
			stale[name] = true
			delete(d.file, ref)
		}
	}
	for name := range stale {
		if err := d.replace(name, contents[name]); err != nil {
			return fmt.Errorf("write manifest: %w", err)
		}
	}
	d.known = now
	return nil
}

func (d *Directory) replace(name string, documents []string) error {
	path := filepath.Join(d.path, name)
	if len(documents) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	content := []byte(strings.Join(documents, "---\n"))
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	// Readers of the directory skip names that begin with a dot.
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temporary, content, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// Read brings the cluster in step with the files and says whether anything differs. After an error, a file that is
// half edited for instance, the cluster is as it was.
func (d *Directory) Read(c *Cluster) (changed bool, err error) {
	files := make(map[Ref]string)
	objects := make(map[Ref]Object)
	known := make(map[Ref]string)
	var order []Ref
	err = walk(os.DirFS(d.path), ".", func(name string, found []Object) error {
		for _, o := range found {
			if o.GetNamespace() == "" && namespaced(o) {
				o.SetNamespace("default")
			}
			ref := RefOf(o)
			if other, twice := files[ref]; twice {
				return fmt.Errorf("%s is in %s and in %s", ref, other, name)
			}
			b, err := yaml.Marshal(o)
			if err != nil {
				return fmt.Errorf("encode %s: %w", ref, err)
			}
			files[ref], objects[ref], known[ref] = name, o, string(b)
			order = append(order, ref)
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	for _, ref := range order {
		if known[ref] != d.known[ref] {
			c.Apply(objects[ref])
			changed = true
		}
	}
	for _, ref := range slices.Clone(c.order) {
		if objects[ref] == nil {
			c.Delete(ref)
			changed = true
		}
	}
	d.file, d.known = files, known
	return changed, nil
}

// FileName is the name of the file that an object gets.
func FileName(r Ref) string {
	kind, _, _ := strings.Cut(strings.ToLower(r.Kind), ".")
	if r.Namespace == "" {
		return kind + "-" + r.Name + ".yaml"
	}
	return kind + "-" + r.Namespace + "-" + r.Name + ".yaml"
}
