package flowread

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
)

// Source is a log to read.
type Source struct {
	// Name is how messages call it.
	Name string
	io.Reader
}

// Sink takes the records that were picked, one at a time. The line has no newline and is valid during the call only.
type Sink interface {
	Record(line []byte, r *Record) error
}

// Stats counts what was read.
type Stats struct {
	// Read counts records, Picked those handed to the sink, Unreadable lines that are none.
	Read, Picked, Unreadable int
}

// maxLine bounds a line in bytes.
const maxLine = 1 << 20

// input is a source with its next record.
type input struct {
	Source
	scanner *bufio.Scanner
	line    []byte
	record  *Record
}

func newInput(s Source) *input {
	in := &input{Source: s, scanner: bufio.NewScanner(s.Reader)}
	in.scanner.Buffer(nil, maxLine)
	return in
}

// next reads up to the next line that is a record; false at the end.
func (in *input) next(st *Stats) (bool, error) {
	for in.scanner.Scan() {
		line := in.scanner.Bytes()
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		r, err := Parse(line)
		if err != nil {
			st.Unreadable++
			continue
		}
		st.Read++
		in.line, in.record = line, r
		return true, nil
	}
	in.record = nil
	if err := in.scanner.Err(); err != nil {
		return false, fmt.Errorf("reading %s: %w", in.Name, err)
	}
	return false, nil
}

// Merge hands the records of all sources, each of which is in order, to the sink in the order of their times.
func Merge(sources []Source, f Filter, sink Sink) (Stats, error) {
	var st Stats
	var open []*input
	for _, s := range sources {
		in := newInput(s)
		ok, err := in.next(&st)
		if err != nil {
			return st, err
		}
		if ok {
			open = append(open, in)
		}
	}
	for len(open) > 0 {
		first := 0
		for i, in := range open {
			if in.record.Time.Before(open[first].record.Time) {
				first = i
			}
		}
		in := open[first]
		if f.Matches(in.record) {
			st.Picked++
			if err := sink.Record(in.line, in.record); err != nil {
				return st, err
			}
		}
		ok, err := in.next(&st)
		if err != nil {
			return st, err
		}
		if !ok {
			open = append(open[:first], open[first+1:]...)
		}
	}
	return st, nil
}
