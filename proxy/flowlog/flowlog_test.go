package flowlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// constant stands for the engine's enumerations.
type constant uint8

const (
	deny constant = iota
	ingress
	isolated
)

func (c constant) String() string { return [...]string{"deny", "ingress", "isolated"}[c] }

// names stands for the engine's decisions.
type names struct{ list []string }

func (n *names) Policies() []string { return n.list }

var (
	web = &endpoint.Endpoint{Kind: identity.Pod, Namespace: "shop", Name: "web-1"}
	db  = &endpoint.Endpoint{Kind: identity.Pod, Namespace: "shop", Name: "db-0"}
	lan = &endpoint.Endpoint{Kind: identity.Node, Name: "node-b"}

	denyAll = &names{[]string{"shop/deny-all", "shop/db"}}
)

// refused is a record of web-1 being refused by db-0.
func refused(srcPort, dstPort uint16) Record {
	return Record{
		Time:        time.Now().UnixNano(),
		Src:         netip.AddrPortFrom(netip.MustParseAddr("10.244.1.5"), srcPort),
		Dst:         netip.AddrPortFrom(netip.MustParseAddr("10.244.2.7"), dstPort),
		SrcEndpoint: web, DstEndpoint: db,
		Proto:   packet.ProtoTCP,
		Verdict: deny, Direction: ingress, Reason: isolated,
		Policies: denyAll,
	}
}

// output is a file in memory. While it is full it takes some bytes of a write before it fails.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	full bool
	take int
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.full {
		n, _ := o.text.Write(b[:o.take])
		return n, errors.New("no space left on device")
	}
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (o *output) fill(full bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.full = full
}

// line is the part of a line that the tests look at.
type line struct {
	Count    uint64
	Reason   string
	Src, Dst struct {
		IP, Namespace, Pod string
		Port               uint16
	}
	Policies []string
}

func lines(t *testing.T, text string) []line {
	t.Helper()
	var all []line
	for s := range strings.Lines(text) {
		var l line
		if err := json.Unmarshal([]byte(s), &l); err != nil {
			t.Fatalf("line %q: %v", s, err)
		}
		all = append(all, l)
	}
	return all
}

func newLog(t *testing.T, cfg Config) *Log {
	t.Helper()
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLog(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func put(t *testing.T, r *Ring, rec Record) {
	t.Helper()
	if !r.Put(&rec) {
		t.Fatal("the ring is full")
	}
}

// afterPoll lets the log's goroutine look at the rings once. Time is the bubble's own.
func afterPoll() {
	time.Sleep(pollInterval)
	synctest.Wait()
}

func TestLineShape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		l := newLog(t, Config{Output: &out, Node: "node-a"})
		put(t, l.Ring(0), refused(40001, 5432))
		external := refused(0, 0)
		external.Proto = 47
		external.SrcEndpoint, external.DstEndpoint, external.Policies = lan, nil, nil
		external.Dst = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), 0)
		external.Reason = nil
		put(t, l.Ring(0), external)
		closeLog(t, l)

		want := `{"time":"2000-01-01T00:00:00Z","node":"node-a","verdict":"deny","direction":"ingress",` +
			`"reason":"isolated","proto":"tcp",` +
			`"src":{"ip":"10.244.1.5","port":40001,"namespace":"shop","pod":"web-1"},` +
			`"dst":{"ip":"10.244.2.7","port":5432,"namespace":"shop","pod":"db-0"},` +
			`"policies":["shop/deny-all","shop/db"],"count":1}` + "\n" +
			`{"time":"2000-01-01T00:00:00Z","node":"node-a","verdict":"deny","direction":"ingress",` +
			`"reason":"","proto":"47",` +
			`"src":{"ip":"10.244.1.5","port":0,"namespace":"","pod":""},` +
			`"dst":{"ip":"2001:db8::1","port":0,"namespace":"","pod":""},` +
			`"policies":[],"count":1}` + "\n"
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
	})
}

func TestRepeatsAreGatheredInWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		l := newLog(t, Config{Output: &out})
		defer closeLog(t, l)
		r := l.Ring(0)

		for port := uint16(40001); port <= 40005; port++ { // five attempts, each from another port
			put(t, r, refused(port, 5432))
		}
		afterPoll()
		if got := lines(t, out.String()); len(got) != 1 || got[0].Count != 1 || got[0].Src.Port != 40001 {
			t.Fatalf("at once: %+v, want the first attempt alone", got)
		}

		time.Sleep(defaultWindow)
		synctest.Wait()
		got := lines(t, out.String())
		if len(got) != 2 || got[1].Count != 4 || got[1].Src.Port != 40002 {
			t.Fatalf("after the window: %+v, want one line more, for the four repeats", got)
		}

		put(t, r, refused(40006, 5432)) // in the second window: told at its end
		afterPoll()
		if got := lines(t, out.String()); len(got) != 2 {
			t.Fatalf("in the second window: %+v, want nothing more yet", got)
		}
		time.Sleep(defaultWindow)
		synctest.Wait()
		if got := lines(t, out.String()); len(got) != 3 || got[2].Count != 1 {
			t.Fatalf("after the second window: %+v", got)
		}

		time.Sleep(2 * defaultWindow) // a window without packets: forgotten
		put(t, r, refused(40007, 5432))
		afterPoll()
		if got := lines(t, out.String()); len(got) != 4 || got[3].Src.Port != 40007 {
			t.Fatalf("after a quiet window: %+v, want a line at once", got)
		}
		if s := l.Stats(); s != (Stats{Lines: 4}) {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestWhatMakesAnotherLine(t *testing.T) {
	other := &names{[]string{"shop/other"}}
	same := &names{denyAll.list} // another decision of the same policies, as after a policy change
	moved := &endpoint.Endpoint{Kind: identity.Pod, Namespace: "shop", Name: "web-2"}
	tests := []struct {
		name   string
		change func(*Record)
		lines  int
	}{
		{"nothing", func(*Record) {}, 1},
		{"source port", func(r *Record) { r.Src = netip.AddrPortFrom(r.Src.Addr(), 1) }, 1},
		{"equal policies", func(r *Record) { r.Policies = same }, 1},
		{"policies", func(r *Record) { r.Policies = other }, 2},
		{"destination port", func(r *Record) { r.Dst = netip.AddrPortFrom(r.Dst.Addr(), 80) }, 2},
		{"protocol", func(r *Record) { r.Proto = packet.ProtoUDP }, 2},
		{"source", func(r *Record) { r.Src = netip.AddrPortFrom(r.Dst.Addr(), r.Src.Port()) }, 2},
		{"reason", func(r *Record) { r.Reason = nil }, 2},
		{"owner of the source", func(r *Record) { r.SrcEndpoint = moved }, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out output
				l := newLog(t, Config{Output: &out})
				a, b := refused(40001, 5432), refused(40001, 5432)
				tt.change(&b)
				put(t, l.Ring(0), a)
				put(t, l.Ring(0), b)
				afterPoll()
				if got := lines(t, out.String()); len(got) != tt.lines {
					t.Errorf("%d lines, want %d: %+v", len(got), tt.lines, got)
				}
				closeLog(t, l)
			})
		})
	}
}

func TestCloseTellsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		l := newLog(t, Config{Output: &out, LinesPerSecond: 1})
		for port := range uint16(10) {
			put(t, l.Ring(0), refused(40000, port))
		}
		closeLog(t, l)
		closeLog(t, l) // again does no harm
		if got := lines(t, out.String()); len(got) != 10 {
			t.Errorf("%d lines, want 10, the limit notwithstanding", len(got))
		}
		if s := l.Stats(); s.Lost != 0 {
			t.Errorf("stats %+v, want nothing lost", s)
		}
	})
}

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		l := newLog(t, Config{Output: &out, LinesPerSecond: 5})
		for port := range uint16(100) {
			put(t, l.Ring(0), refused(40000, port))
		}
		afterPoll()
		if got := lines(t, out.String()); len(got) != 5 {
			t.Errorf("%d lines at once, want the burst of 5", len(got))
		}
		time.Sleep(defaultWindow) // the limiter is full again: 5 more of the 95
		synctest.Wait()
		if got := lines(t, out.String()); len(got) != 10 {
			t.Errorf("%d lines after the window, want 10", len(got))
		}
		want := Stats{Lines: 10, Suppressed: 95 + 90, Lost: 90}
		if diff := cmp.Diff(want, l.Stats()); diff != "" {
			t.Errorf("stats (-want +got):\n%s", diff)
		}
		closeLog(t, l)
	})
}

func TestTableIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		l := newLog(t, Config{Output: &out, MaxOpen: 10})
		for port := range uint16(30) {
			put(t, l.Ring(0), refused(40000, port))
		}
		afterPoll()
		if diff := cmp.Diff(Stats{Lines: 10, Lost: 20}, l.Stats()); diff != "" {
			t.Errorf("stats (-want +got):\n%s", diff)
		}
		time.Sleep(2 * defaultWindow)
		put(t, l.Ring(0), refused(40000, 1000))
		afterPoll()
		if s := l.Stats(); s.Lines != 11 {
			t.Errorf("%d lines, want 11: ended windows make room", s.Lines)
		}
		closeLog(t, l)
	})
}

func TestTeeHasTheLinesOfTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		var tee bytes.Buffer
		l := newLog(t, Config{Output: &out, Tee: func(line []byte) { tee.Write(line) }})
		put(t, l.Ring(0), refused(40001, 5432))
		afterPoll()
		out.take = 10
		out.fill(true)
		put(t, l.Ring(0), refused(40001, 5433)) // torn: told again, and streamed, when there is room
		afterPoll()
		out.fill(false)
		put(t, l.Ring(0), refused(40001, 5434))
		afterPoll()
		closeLog(t, l)
		var got []uint16
		for _, one := range lines(t, tee.String()) {
			got = append(got, one.Dst.Port)
		}
		if d := cmp.Diff([]uint16{5432, 5434, 5433}, got); d != "" {
			t.Error(d)
		}
	})
}

func TestConfig(t *testing.T) {
	for _, cfg := range []Config{{}, {Output: io.Discard, Window: -1}, {Output: io.Discard, MaxOpen: -1}} {
		if l, err := New(cfg); err == nil {
			closeLog(t, l)
			t.Errorf("New(%+v) took it", cfg)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	r := newRing(1 << 12)
	rec := refused(40000, 5432)
	b.ReportAllocs()
	for b.Loop() {
		if !r.Put(&rec) {
			r.drain(func(*Record) {})
			r.lost.Store(0)
		}
	}
}
