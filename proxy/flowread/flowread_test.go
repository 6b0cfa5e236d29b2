package flowread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/firstpacket/firstpacket/policycache/term"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// line is one line of a log, seconds after noon.
func line(second int, from, to, policy string) string {
	side := func(s string) string {
		ns, pod, _ := strings.Cut(s, "/")
		return fmt.Sprintf(`{"ip":"10.0.0.1","port":5432,"namespace":%q,"pod":%q}`, ns, pod)
	}
	return fmt.Sprintf(`{"time":"2026-01-02T12:00:%02dZ","node":"n1","verdict":"deny","direction":"ingress",`+
		`"reason":"no-rule-matches","proto":"tcp","src":%s,"dst":%s,"policies":[%q],"count":3}`+"\n",
		second, side(from), side(to), policy)
}

// seen notes seconds.
type seen struct{ list []int }

func (s *seen) Record(_ []byte, r *Record) error {
	s.list = append(s.list, r.Time.Second())
	return nil
}

func TestFilter(t *testing.T) {
	log := line(1, "a/web", "b/db", "NetworkPolicy/b/db") + line(2, "", "a/web", "ClusterNetworkPolicy/all") +
		line(3, "b/db", "", "NetworkPolicy.v1alpha1/b/old")
	for name, c := range map[string]struct {
		filter Filter
		want   []int
	}{
		"everything":       {Filter{}, []int{1, 2, 3}},
		"verdict":          {Filter{Verdict: "deny"}, []int{1, 2, 3}},
		"other verdict":    {Filter{Verdict: "allow"}, nil},
		"pod, either side": {Filter{Pod: "a/web"}, []int{1, 2}},
		"namespace":        {Filter{Namespace: "b"}, []int{1, 3}},
		"policy":           {Filter{Policy: "b/db"}, []int{1}},
		"cluster policy":   {Filter{Policy: "all"}, []int{2}},
		"whole name":       {Filter{Policy: "NetworkPolicy.v1alpha1/b/old"}, []int{3}},
		"part of a name":   {Filter{Policy: "db"}, nil},
		"since":            {Filter{Since: time.Date(2026, 1, 2, 12, 0, 2, 0, time.UTC)}, []int{2, 3}},
		"all of them":      {Filter{Pod: "a/web", Policy: "all", Namespace: "a", Verdict: "deny"}, []int{2}},
	} {
		var got seen
		st, err := Merge([]Source{{"log", strings.NewReader(log)}}, c.filter, &got)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(c.want, got.list); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if want := (Stats{Read: 3, Picked: len(c.want)}); st != want {
			t.Errorf("%s: %+v, want %+v", name, st, want)
		}
	}
	for _, bad := range []string{"web", "/web", "a/", "a/b/c"} {
		if err := (&Filter{Pod: bad}).Validate(); err == nil {
			t.Errorf("pod %q passes", bad)
		}
	}
}

func TestMergeIsInOrderAndCountsWhatItCannotRead(t *testing.T) {
	a := line(1, "a/web", "b/db", "p") + "half a li\n\n" + line(4, "a/web", "b/db", "p")
	b := `{"verdict":"deny"}` + "\n" + line(2, "a/web", "b/db", "p") + line(3, "a/web", "b/db", "p")
	var got seen
	st, err := Merge([]Source{{"a", strings.NewReader(a)}, {"b", strings.NewReader(b)}, {"c", strings.NewReader("")}},
		Filter{}, &got)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]int{1, 2, 3, 4}, got.list); d != "" {
		t.Error(d)
	}
	if want := (Stats{Read: 4, Picked: 4, Unreadable: 2}); st != want {
		t.Errorf("%+v", st)
	}
	broken := errors.New("broken")
	for _, read := range []func(s Source) error{
		func(s Source) error { _, err := Merge([]Source{s}, Filter{}, &got); return err },
		func(s Source) error { _, err := Follow([]Source{s}, Filter{}, &got, 0, func() {}); return err },
	} {
		if err := read(Source{"bad", iotest.ErrReader(broken)}); !errors.Is(err, broken) ||
			!strings.Contains(err.Error(), "bad") {
			t.Error(err)
		}
		if err := read(Source{"long", strings.NewReader(strings.Repeat("x", maxLine+1))}); err == nil {
			t.Error("a line without end is read")
		}
	}
}

// failing is a sink whose reader went away.
type failing struct{}

func (failing) Record([]byte, *Record) error { return io.ErrClosedPipe }

func TestFollowStopsWithItsSink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(line(1, "", "", "p")), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var sources []Source
	for range 2 {
		tail, err := OpenTail(ctx, path, true)
		if err != nil {
			t.Fatal(err)
		}
		defer tail.Close()
		sources = append(sources, Source{path, tail})
	}
	if _, err := Follow(sources, Filter{}, failing{}, Window, cancel); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

// TestFollowPutsInOrder: what comes within the window is shown by its time, what comes later when it comes.
func TestFollowPutsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type step struct {
			after  time.Duration
			source int
			second int
		}
		var sources []Source
		var pipes []*io.PipeWriter
		for range 2 {
			r, w := io.Pipe()
			sources, pipes = append(sources, Source{"pipe", r}), append(pipes, w)
		}
		var got seen
		done := make(chan error)
		go func() {
			_, err := Follow(sources, Filter{}, &got, Window, func() {})
			done <- err
		}()
		for _, s := range []step{
			{0, 0, 2}, {0, 0, 4}, {Window / 3, 1, 1}, {0, 1, 3}, {0, 1, 9}, {2 * Window, 0, 6}, {Window / 8, 1, 5}, {0, 1, 8},
		} {
			time.Sleep(s.after)
			if _, err := io.WriteString(pipes[s.source], line(s.second, "", "", "p")); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(Window)
		synctest.Wait()
		if d := cmp.Diff([]int{1, 2, 3, 4, 9, 5, 6, 8}, got.list); d != "" {
			t.Error(d)
		}
		for _, w := range pipes {
			w.Close()
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestTailFollowsGrowthCutsAndRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		put := func(flags, second int) {
			f, err := os.OpenFile(path, flags|os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteString(line(second, "", "", "p")); err != nil {
				t.Fatal(err)
			}
		}
		put(os.O_TRUNC, 1)
		put(os.O_APPEND, 2)
		ctx, cancel := context.WithCancel(t.Context())
		tail, err := OpenTail(ctx, path, true)
		if err != nil {
			t.Fatal(err)
		}
		late, err := OpenTail(ctx, path, false)
		if err != nil {
			t.Fatal(err)
		}
		var got, gotLate seen
		done := make(chan error)
		for _, r := range []struct {
			tail *Tail
			sink *seen
		}{{tail, &got}, {late, &gotLate}} {
			go func() {
				_, err := Follow([]Source{{path, r.tail}}, Filter{}, r.sink, 0, func() {})
				done <- err
			}()
		}
		pause := func() { time.Sleep(2 * poll); synctest.Wait() }
		pause()
		put(os.O_APPEND, 3)
		pause()
		if err := os.Rename(path, path+".1"); err != nil { // rotation
			t.Fatal(err)
		}
		pause()
		put(os.O_TRUNC, 4)
		pause()
		put(os.O_APPEND, 5)
		pause()
		put(os.O_TRUNC, 6) // rotation by copying
		pause()
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if d := cmp.Diff([]int{1, 2, 3, 4, 5, 6}, got.list); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff([]int{3, 4, 5, 6}, gotLate.list); d != "" {
			t.Error(d)
		}
		tail.Close()
		late.Close()
	})
}

func TestOutput(t *testing.T) {
	log := line(1, "a/web", "b/db", "NetworkPolicy/b/db") +
		strings.Replace(line(2, "", "b/ESCdb", "ClusterNetworkPolicy/all"), `"port":5432`, `"port":0`, 2)
	log = strings.Replace(log, "ESC", `\u001b[2J`, 1)
	log = strings.Replace(log, "tcp", "icmp", 2)
	log = strings.Replace(log, "icmp", "tcp", 1)
	var asJSON, table, coloured bytes.Buffer
	for _, sink := range []Sink{
		NewJSON(&asJSON), NewTable(&table, term.Style{}, time.UTC), NewTable(&coloured, term.Style{Colour: true}, time.UTC),
	} {
		if _, err := Merge([]Source{{"log", strings.NewReader(log)}}, Filter{}, sink); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(log, asJSON.String()); d != "" {
		t.Error(d)
	}
	if strings.Contains(table.String(), "\x1b") || !strings.Contains(coloured.String(), "\x1b[31mdeny   \x1b[0m") {
		t.Errorf("%q", coloured.String())
	}
	want := "" +
		"TIME                 VERDICT  DIR      FROM                                      TO                            " +
		"            COUNT  REASON              POLICIES\n" +
		"2026-01-02 12:00:01  deny     ingress  a/web                                     b/db 5432/TCP                 " +
		"                3  no-rule-matches     NetworkPolicy/b/db\n" +
		"2026-01-02 12:00:02  deny     ingress  10.0.0.1                                  b/?[2Jdb ICMP                 " +
		"                3  no-rule-matches     ClusterNetworkPolicy/all\n"
	if d := cmp.Diff(want, table.String()); d != "" {
		t.Error(d)
	}
}
