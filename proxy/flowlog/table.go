package flowlog

import (
	"net/netip"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
)

// key is what packets have in common that one line counts. The source's port is not part of it: each connection
// attempt has another one. The owners are, because an address may change hands within a window.
type key struct {
	src, dst                   netip.Addr
	dstPort                    uint16
	proto                      uint8
	verdict, direction, reason string
	srcOwner, dstOwner         owner
	policies                   string // joined by separators that no object name has
}

// owner names the pod an address belongs to; zero for nodes and for addresses outside of the cluster.
type owner struct{ namespace, pod string }

func ownerOf(e *endpoint.Endpoint) owner {
	if e == nil || e.Kind != identity.Pod {
		return owner{}
	}
	return owner{e.Namespace, e.Name}
}

// aggregate is a refused flow in its current window.
type aggregate struct {
	key      key
	policies []string
	// count, last and srcPort describe the packets that no line has told yet: how many, the newest one's time (Unix
	// nanoseconds) and the first one's source port.
	count   uint64
	last    int64
	srcPort uint16

	deadline time.Time // end of the window
	next     *aggregate
}

// table holds the flows that are being gathered. It belongs to the log's goroutine.
type table struct {
	log     *Log
	window  time.Duration
	max     int
	limiter *rate.Limiter

	open map[key]*aggregate
	// Windows are all of one length, so the order of beginning is the order of ending.
	first, last *aggregate
	// names remembers what a Policies value said, because most packets of a window share a few of them.
	names      map[Policies]policyNames
	namesUntil time.Time
}

type policyNames struct {
	list   []string
	joined string
}

func newTable(l *Log, window time.Duration, maxOpen, linesPerSecond int) *table {
	return &table{
		log:     l,
		window:  window,
		max:     maxOpen,
		limiter: rate.NewLimiter(rate.Limit(linesPerSecond), linesPerSecond),
		open:    make(map[key]*aggregate),
		names:   make(map[Policies]policyNames),
	}
}

// add counts a refused packet, and writes its line at once when it is the first of its kind.
func (t *table) add(rec *Record, now time.Time) {
	names := t.policyNames(rec.Policies, now)
	k := key{
		src: rec.Src.Addr(), dst: rec.Dst.Addr(), dstPort: rec.Dst.Port(), proto: rec.Proto,
		verdict: name(rec.Verdict), direction: name(rec.Direction), reason: name(rec.Reason),
		srcOwner: ownerOf(rec.SrcEndpoint), dstOwner: ownerOf(rec.DstEndpoint),
		policies: names.joined,
	}
	a, known := t.open[k]
	if !known {
		if len(t.open) >= t.max {
			t.log.lost.Add(1)
			return
		}
		a = &aggregate{key: k, policies: names.list}
		t.open[k] = a
		t.begin(a, now)
	}
	if a.count == 0 { // whatever an earlier line said: the clock may have been set back since
		a.srcPort, a.last = rec.Src.Port(), rec.Time
	}
	a.count++
	a.last = max(a.last, rec.Time)
	if !known {
		t.tell(a, now)
	}
}

// expire ends the windows that are over: repeats are told and gathered on in a new window, a flow without any is
// forgotten, and so is one whose line is over the limit.
func (t *table) expire(now time.Time) {
	for t.first != nil && !t.first.deadline.After(now) {
		a := t.first
		if t.first = a.next; t.first == nil {
			t.last = nil
		}
		a.next = nil
		if a.count > 0 && t.tell(a, now) {
			t.begin(a, now)
			continue
		}
		t.log.lost.Add(a.count)
		delete(t.open, a.key)
	}
}

// flush tells everything that is still open, whatever the limit.
func (t *table) flush() {
	for a := t.first; a != nil; a = a.next {
		if a.count > 0 && !t.write(a) {
			t.log.lost.Add(a.count)
		}
	}
	t.first, t.last = nil, nil
	clear(t.open)
}

func (t *table) begin(a *aggregate, now time.Time) {
	a.deadline = now.Add(t.window)
	if t.last == nil {
		t.first = a
	} else {
		t.last.next = a
	}
	t.last = a
}

// tell writes the line of a flow if the limit permits. It returns false when it does not: the flow then had its chance.
// A failed write is another thing: the packets stay counted, for the next window's line.
func (t *table) tell(a *aggregate, now time.Time) bool {
	if !t.limiter.AllowN(now, 1) {
		t.log.suppressed.Add(1)
		return false
	}
	t.write(a)
	return true
}

func (t *table) write(a *aggregate) bool {
	if err := t.log.w.line(a); err != nil {
		t.log.writeErrors.Add(1)
		return false
	}
	t.log.lines.Add(1)
	a.count = 0
	return true
}

func (t *table) policyNames(p Policies, now time.Time) policyNames {
	if p == nil {
		return policyNames{}
	}
	if now.After(t.namesUntil) || len(t.names) >= t.max {
		clear(t.names) // decisions of the past must not be kept alive, nor those of one window without bound
		t.namesUntil = now.Add(t.window)
	}
	names, ok := t.names[p]
	if !ok {
		names.list = p.Policies()
		names.joined = strings.Join(names.list, "\x00")
		t.names[p] = names
	}
	return names
}
