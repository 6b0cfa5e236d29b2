package warnings

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rs/zerolog"
)

func TestKinds(t *testing.T) {
	var r Recorder
	log := zerolog.New(zerolog.MultiLevelWriter(io.Discard, &r)).With().Timestamp().Str("node", "n1").Logger()
	for i := range 3 {
		log.Warn().Err(fmt.Errorf("attempt %d", i)).Str("kind", "Pod").Int("n", i).Msg("the last good state stays")
	}
	log.Error().Strs("problems", []string{"a"}).Msg("broken")
	log.Warn().Err(errors.New("other")).Str("kind", "Node").Msg("the last good state stays")
	log.Info().Msg("nothing wrong")
	log.Log().Msg("no level")
	fmt.Fprintln(log, "no line of ours")
	want := []Warning{
		{Message: "the last good state stays", About: map[string]string{"kind": "Node"}, Error: "other", Count: 1},
		{Message: "broken", Count: 1},
		{Message: "the last good state stays", About: map[string]string{"kind": "Pod"}, Error: "attempt 2", Count: 3},
	}
	got := r.List()
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(Warning{}, "First", "Last")); d != "" {
		t.Error(d)
	}
	for _, w := range got {
		if w.First.IsZero() || w.Last.Before(w.First) {
			t.Errorf("from %s to %s", w.First, w.Last)
		}
	}
	got[2].About["kind"] = "mine"
	if r.List()[2].About["kind"] != "Pod" {
		t.Error("what is listed is not the caller's own")
	}
}

// TestBounds: whatever is logged, however often, memory stays bounded, and the newest is there.
func TestBounds(t *testing.T) {
	var r Recorder
	began := time.Now()
	for i := range 3 * maxKinds {
		line, err := json.Marshal(map[string]string{
			"message": "failed", "policy": fmt.Sprint(i), "error": strings.Repeat("x", 10*maxText),
		})
		if err != nil {
			t.Fatal(err)
		}
		r.record(line, began.Add(time.Duration(i)*time.Second))
	}
	r.record([]byte("{torn"), began)
	list := r.List()
	if len(list) != maxKinds || list[0].About["policy"] != fmt.Sprint(3*maxKinds-1) || len(list[0].Error) != maxText {
		t.Errorf("%d warnings, the newest %+v", len(list), list[0])
	}
	if (*Recorder)(nil).List() != nil {
		t.Error("nobody remembers")
	}
}
