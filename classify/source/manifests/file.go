package manifests

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// content is a file's content, wholly understood or not. It is never changed.
type content struct {
	sum     [sha256.Size]byte
	objects []placed
	ignored []schema.GroupVersionKind
	// notes lack File.
	notes []Note
	// documents finds the documents' results by their sums, for the next version of the file.
	documents map[[sha256.Size]byte]*decoded
	// problems lack File. Content that has any is never in force.
	problems []Problem
}

// placed is an object and where it stands.
type placed struct {
	typed
	document, line int
}

// parse decodes a file. Documents that were in before, the file's earlier content, keep their objects.
func (r *registry) parse(raw []byte, before *content) *content {
	c := &content{sum: sha256.Sum256(raw), documents: map[[sha256.Size]byte]*decoded{}}
	if len(bytes.TrimSpace(raw)) == 0 {
		// Also what a file looks like that is being written in place.
		c.problems = []Problem{{Detail: "is empty; to take its objects out of force, remove the file"}}
		return c
	}
	if before != nil {
		c.objects = make([]placed, 0, len(before.objects)+1)
		c.documents = make(map[[sha256.Size]byte]*decoded, len(before.documents))
	}
	first := make(map[objectID]placed, cap(c.objects))
	for _, doc := range split(raw) {
		sum := sha256.Sum256(doc.raw)
		d := c.documents[sum]
		if d == nil && before != nil {
			d = before.documents[sum]
		}
		if d == nil {
			d = r.decode(doc.raw)
		}
		c.documents[sum] = d
		for _, p := range d.problems {
			p.Document, p.Line = doc.number, doc.line
			if d.syntax {
				p.Detail = shiftLines(p.Detail, doc.line-1)
			}
			c.problems = append(c.problems, p)
		}
		c.ignored = append(c.ignored, d.ignored...)
		for _, n := range d.notes {
			n.Document, n.Line = doc.number, doc.line
			c.notes = append(c.notes, n)
		}
		for _, t := range d.objects {
			o := placed{t, doc.number, doc.line}
			if other, ok := first[o.objectID()]; ok {
				c.problems = append(c.problems, Problem{
					Document: doc.number, Line: doc.line, Object: t.id(),
					Detail: fmt.Sprintf("is in document %d (line %d) too", other.document, other.line),
				})
				continue
			}
			first[o.objectID()] = o
			c.objects = append(c.objects, o)
		}
	}
	return c
}

var lineNumber = regexp.MustCompile(`\bline (\d+):`)

// shiftLines makes line numbers of a document into those of its file.
func shiftLines(detail string, by int) string {
	return lineNumber.ReplaceAllStringFunc(detail, func(s string) string {
		n, err := strconv.Atoi(lineNumber.FindStringSubmatch(s)[1])
		if err != nil {
			return s
		}
		return "line " + strconv.Itoa(n+by) + ":"
	})
}

// located returns the content's problems as those of the file.
func (c *content) located(file string) Problems {
	ps := make(Problems, len(c.problems))
	for i := range c.problems {
		p := c.problems[i]
		p.File = file
		ps[i] = &p
	}
	return ps
}

// noted returns the content's notes as those of the file.
func (c *content) noted(file string) []Note {
	notes := slices.Clone(c.notes)
	for i := range notes {
		notes[i].File = file
	}
	return notes
}

// objectID is what must be unique among all files.
type objectID struct {
	kind            *Kind
	namespace, name string
}

func (t typed) objectID() objectID {
	return objectID{t.kind, t.object.GetNamespace(), t.object.GetName()}
}

// isManifest tells by the name whether a file is one: editors' and tools' temporary files are not.
func isManifest(name string) bool {
	if hidden(name) {
		return false
	}
	for _, suffix := range []string{".yaml", ".yml", ".json"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// hidden files are skipped; mounted ConfigMaps keep their real files in hidden folders, beside links to them.
func hidden(name string) bool { return strings.HasPrefix(name, ".") }
