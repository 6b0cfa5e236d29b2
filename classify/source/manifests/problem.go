package manifests

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"
)

// Problem is something wrong with a file; none of the file's present content is in force.
type Problem struct {
	// File is the path of the file, relative to the directory that was loaded.
	File string
	// Document counts the file's documents from 1; 0 when the whole file is meant. Line is where it begins.
	Document, Line int
	// Object names the object, "Pod shop/web", as far as it is known.
	Object string
	// Field is the path of the field, "spec.ingress[0].ports[1].port"; empty when no single one is meant.
	Field string
	// Detail says what is wrong.
	Detail string
	// Err is the error of the operating system for files that cannot be read.
	Err error
}

// Error prints the problem in one line.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Document > 0 {
		b.WriteString(": document " + strconv.Itoa(p.Document) + " (line " + strconv.Itoa(p.Line) + ")")
	}
	for _, s := range []string{p.Object, p.Field, p.Detail} {
		if s != "" {
			b.WriteString(": " + s)
		}
	}
	return b.String()
}

// Unwrap returns the error of the operating system, if there is one.
func (p *Problem) Unwrap() error { return p.Err }

// Note is something worth knowing about an object that is nothing wrong.
type Note struct {
	// File, Document, Line and Object are as in a Problem.
	File           string
	Document, Line int
	Object         string
	// Text says it in a sentence.
	Text string
}

func (n Note) compare(o Note) int {
	return cmp.Or(strings.Compare(n.File, o.File), cmp.Compare(n.Document, o.Document))
}

// String prints the note in one line.
func (n Note) String() string {
	return (&Problem{File: n.File, Document: n.Document, Line: n.Line, Object: n.Object, Detail: n.Text}).Error()
}

// Problems are all that was found, in the order of files and documents.
type Problems []*Problem

// Err joins the problems into one error; nil for none.
func (ps Problems) Err() error {
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = p
	}
	return errors.Join(errs...)
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b *Problem) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Document, b.Document))
	})
}
