package manifests

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// loader reads a directory again and again and keeps the last good state of each file. It is for one goroutine.
type loader struct {
	root     string
	registry *registry
	// read has what was last read of each file, good or not.
	read map[string]reading
	// force has the content of each file that is in force: always good, and no object twice.
	force map[string]*content
	// served has what the last snapshot made of the objects in force.
	served map[objectID]published
}

type reading struct {
	stamp   stamp
	at      time.Time
	content *content
}

// loaded is the outcome of reading the directory once.
type loaded struct {
	tree     *tree
	problems Problems
	ignored  []schema.GroupVersionKind
	notes    []Note
	digest   string
}

func newLoader(root string, r *registry) *loader {
	return &loader{root: root, registry: r, read: map[string]reading{}, force: map[string]*content{}}
}

// load brings l.force up to the present content of the directory, file by file, where that is good.
func (l *loader) load() *loaded {
	out := &loaded{tree: walk(l.root)}
	fresh := map[string]*content{}
	for rel, info := range out.tree.files {
		c, err := l.file(rel, info)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			out.tree.unreadable[rel] = err
		case len(c.problems) > 0:
			out.problems = append(out.problems, c.located(rel)...)
			out.tree.unreadable[rel] = nil
		default:
			fresh[rel] = c
		}
	}
	for rel, err := range out.tree.unreadable {
		if err != nil {
			out.problems = append(out.problems, unreadable(rel, err))
		}
	}

	next := maps.Clone(fresh)
	for rel, c := range l.force {
		if next[rel] == nil && out.tree.covers(rel) {
			next[rel] = c
		}
	}
	out.problems = append(out.problems, l.resolve(next)...)
	l.force = next
	for rel := range l.read {
		if _, ok := out.tree.files[rel]; !ok {
			delete(l.read, rel)
		}
	}

	sums := make(map[string][sha256.Size]byte, len(next))
	seen := map[schema.GroupVersionKind]bool{}
	for rel, c := range next {
		sums[rel] = c.sum
		for _, gvk := range c.ignored {
			seen[gvk] = true
		}
		out.notes = append(out.notes, c.noted(rel)...)
	}
	slices.SortStableFunc(out.notes, Note.compare)
	out.digest = digest(sums)
	out.ignored = slices.SortedFunc(maps.Keys(seen), func(a, b schema.GroupVersionKind) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Version, b.Version))
	})
	out.problems.sort()
	return out
}

// file reads and decodes a file unless it is known to be the one that was read last.
func (l *loader) file(rel string, info fs.FileInfo) (*content, error) {
	last, known := l.read[rel]
	now := stampOf(info)
	if known && last.stamp == now && now.settled(last.at) {
		return last.content, nil
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("is larger than %d MiB", maxFile>>20)
	}
	at := time.Now()
	raw, err := readFile(filepath.Join(l.root, filepath.FromSlash(rel)))
	if err != nil {
		return nil, err
	}
	c := last.content
	if c == nil || c.sum != sha256.Sum256(raw) {
		c = l.registry.parse(raw, last.content)
	}
	l.read[rel] = reading{stamp: now, at: at, content: c}
	return c, nil
}

// resolve finds objects that are in two files and takes one of the two out of next: the one with new content, or of two
// such the later in the alphabet. Its last good state comes back, if it had one. Last good states do not conflict with
// each other, so this ends.
func (l *loader) resolve(next map[string]*content) Problems {
	var problems Problems
	for {
		loser, p := l.conflict(next)
		if p == nil {
			return problems
		}
		problems = append(problems, p)
		if old := l.force[loser]; old != nil {
			next[loser] = old
		} else {
			delete(next, loser)
		}
	}
}

func (l *loader) conflict(next map[string]*content) (loser string, p *Problem) {
	type place struct {
		file string
		placed
	}
	count := 0
	for _, c := range next {
		count += len(c.objects)
	}
	first := make(map[objectID]place, count)
	for _, rel := range slices.Sorted(maps.Keys(next)) {
		for _, o := range next[rel].objects {
			other, ok := first[o.objectID()]
			if !ok {
				first[o.objectID()] = place{rel, o}
				continue
			}
			mine := place{rel, o}
			if next[rel] == l.force[rel] {
				mine, other = other, mine
			}
			return mine.file, &Problem{
				File: mine.file, Document: mine.document, Line: mine.line, Object: mine.id(),
				Detail: fmt.Sprintf("is in %s: document %d (line %d) too", other.file, other.document, other.line),
			}
		}
	}
	return "", nil
}

// unreadable is the problem of a file or folder that cannot be looked at. The root is called by the name ".".
func unreadable(rel string, err error) *Problem {
	detail := err
	var pe *fs.PathError
	if errors.As(err, &pe) {
		detail = pe.Err
	}
	return &Problem{File: rel, Detail: "cannot be read: " + detail.Error(), Err: err}
}
