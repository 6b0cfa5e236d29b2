// Package warnings remembers what an agent has warned of, for those who ask it how it is and cannot see its log.
package warnings

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Warning is one kind of trouble: lines of the log that differ in their numbers and in their error only.
type Warning struct {
	// Message and About are those of the log's line: what happened, and what it is about, in words by field.
	Message string            `json:"message"`
	About   map[string]string `json:"about,omitempty"`
	// Error is the last one's, empty if it has none.
	Error string `json:"error,omitempty"`
	// Count is how often it was logged, from First to Last.
	Count uint64    `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

const (
	// maxKinds bounds the warnings that are remembered; the one that has not come for longest makes room.
	maxKinds = 32
	// maxText bounds each text of a warning in bytes: an error may quote what others wrote.
	maxText = 500
)

// Recorder is a second writer of a logger. The zero value is ready; it may be used by several goroutines.
type Recorder struct {
	mu    sync.Mutex
	kinds map[string]*Warning
}

// Write implements io.Writer for lines without a level, which are no warnings.
func (r *Recorder) Write(line []byte) (int, error) { return len(line), nil }

// WriteLevel implements zerolog.LevelWriter. Of lines below a warning it takes nothing and reads nothing.
func (r *Recorder) WriteLevel(level zerolog.Level, line []byte) (int, error) {
	if level >= zerolog.WarnLevel && level <= zerolog.PanicLevel {
		r.record(line, time.Now())
	}
	return len(line), nil
}

// apart are fields that do not tell kinds of trouble apart; all lines of an agent are of its node.
var apart = map[string]bool{
	zerolog.MessageFieldName: true, zerolog.ErrorFieldName: true, zerolog.LevelFieldName: true,
	zerolog.TimestampFieldName: true, "node": true,
}

func (r *Recorder) record(line []byte, now time.Time) {
	var fields map[string]any
	if json.Unmarshal(line, &fields) != nil {
		return // zerolog writes objects
	}
	text := func(name string) string {
		s, _ := fields[name].(string)
		return strings.ToValidUTF8(s[:min(len(s), maxText)], "")
	}
	w := &Warning{Message: text(zerolog.MessageFieldName), First: now}
	key := []string{w.Message}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if _, words := fields[name].(string); !words || apart[name] {
			continue
		}
		if w.About == nil {
			w.About = map[string]string{}
		}
		w.About[name] = text(name)
		key = append(key, name, w.About[name])
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kind := strings.Join(key, "\x00")
	if old := r.kinds[kind]; old != nil {
		w = old
	} else {
		r.makeRoom()
		r.kinds[kind] = w
	}
	w.Error = text(zerolog.ErrorFieldName)
	w.Count++
	w.Last = now
}

// makeRoom leaves room for one more. Called with mu held.
func (r *Recorder) makeRoom() {
	if r.kinds == nil {
		r.kinds = map[string]*Warning{}
	}
	if len(r.kinds) < maxKinds {
		return
	}
	oldest := ""
	for kind, w := range r.kinds {
		if oldest == "" || w.Last.Before(r.kinds[oldest].Last) {
			oldest = kind
		}
	}
	delete(r.kinds, oldest)
}

// List returns what is remembered, the newest first. It works on a nil Recorder, which remembers nothing.
func (r *Recorder) List() []Warning {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Warning
	for _, w := range r.kinds {
		one := *w
		one.About = maps.Clone(w.About)
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b Warning) int {
		return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.Message, b.Message))
	})
	return list
}
