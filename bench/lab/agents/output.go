package agents

import (
	"bytes"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// keptLines bounds what is remembered of an agent's output, oldest first out.
const keptLines = 20_000

// Record is one line of the denied-flow log.
type Record struct {
	Time      time.Time `json:"time"`
	Node      string    `json:"node"`
	Verdict   string    `json:"verdict"`
	Direction string    `json:"direction"`
	Reason    string    `json:"reason"`
	Proto     string    `json:"proto"`
	Src       Side      `json:"src"`
	Dst       Side      `json:"dst"`
	Policies  []string  `json:"policies"`
	Count     uint64    `json:"count"`
	// Line is the line itself.
	Line string `json:"-"`
}

// Side is one end of a denied flow.
type Side struct {
	IP        string `json:"ip"`
	Port      uint16 `json:"port"`
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
}

// Output is what an agent wrote to its standard streams. It is safe for concurrent use.
type Output struct {
	mu      sync.Mutex
	lines   []string
	records []Record
}

// Lines returns everything that is not a denied-flow record, oldest first.
func (o *Output) Lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.lines)
}

// Records returns the denied-flow records, oldest first.
func (o *Output) Records() []Record {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.records)
}

// last is the end of the output, for messages.
func (o *Output) last() string {
	lines := o.Lines()
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// stream makes a writer that takes lines; flows says that denied-flow records may be among them.
func (o *Output) stream(flows bool) io.Writer { return &stream{output: o, flows: flows} }

// stream is one of the two standard streams; os/exec writes to it from one goroutine.
type stream struct {
	output *Output
	flows  bool
	tail   []byte
}

func (s *stream) Write(p []byte) (int, error) {
	s.tail = append(s.tail, p...)
	for {
		line, rest, ok := bytes.Cut(s.tail, []byte{'\n'})
		if !ok {
			return len(p), nil
		}
		s.output.add(string(line), s.flows)
		s.tail = rest
	}
}

func (o *Output) add(line string, flows bool) {
	var r Record
	isRecord := flows && json.Unmarshal([]byte(line), &r) == nil && r.Verdict != ""
	o.mu.Lock()
	defer o.mu.Unlock()
	if isRecord {
		r.Line = line
		o.records = keep(append(o.records, r))
		return
	}
	o.lines = keep(append(o.lines, line))
}

func keep[T any](list []T) []T {
	if len(list) > 2*keptLines {
		return slices.Clone(list[len(list)-keptLines:])
	}
	return list
}
