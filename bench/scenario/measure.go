package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/firstpacket/firstpacket/bench/load"
	"github.com/firstpacket/firstpacket/bench/report"
)

// entry is one contender in a comparison, and what it has to do in each round.
type entry struct {
	*contender
	job load.Job
	// worker does the job; nil is the contender's client.
	worker *load.Worker
	// asks is how many packets userspace is asked about for each connection: 1, or 0 where the kernel answers.
	asks int
	// fresh: each connection is of a tuple that nobody has used at this contender.
	fresh bool
	// warm connections are made before each round, and not measured, to fill the kernel's cache.
	warm int
	// rate makes the number that is compared, of a round; nil is connections a second.
	rate func(*load.Result) float64
	// before and after are called around each round, if set; after may object to what it came to.
	before func() error
	after  func(*load.Result) error

	rates   []float64 // of all turns
	latency load.Histogram
	lost    int
	cpu     time.Duration
	judged  int

	// total and start are of the present round: what the job has come to, and the counters at its beginning.
	total load.Result
	start counters
}

// counters are what a round is checked by.
type counters struct {
	queued uint64
	cpu    time.Duration
}

// pace is how a comparison is made: in rounds, which are prepared and checked, of so many turns each. Turns are short,
// so that whatever else the machine is busy with meets all entries alike.
type pace struct{ rounds, turns int }

// compare has all entries do their jobs, turn by turn: each turn goes through the entries from the next one on. (Were
// the order turned round, the first and the last would follow themselves, on warm caches, and those between never.) As
// all have begun then, each has a site of its own. In rounds of a single turn, each entry is prepared and checked by
// itself, with nothing in between.
func (s *Suite) compare(ctx context.Context, p pace, entries ...*entry) error {
	for _, e := range entries { // what happens the first time only is not measured
		if e.worker == nil {
			e.worker = e.load
		}
		warm := *e
		if err := warm.in(begin, turn, end); err != nil {
			return err
		}
	}
	order := slices.Clone(entries)
	for range p.rounds {
		if err := ctx.Err(); err != nil {
			return err
		}
		steps := [][]step{{begin, turn, end}}
		if p.turns > 1 {
			steps = slices.Concat([][]step{{begin}}, slices.Repeat([][]step{{turn}}, p.turns), [][]step{{end}})
		}
		for _, do := range steps {
			for _, e := range order {
				if err := e.in(do...); err != nil {
					return err
				}
			}
			order = append(order[1:], order[0])
		}
	}
	return nil
}

// step is a part of a round.
type step func(*entry) error

func (e *entry) in(steps ...step) error {
	for _, do := range steps {
		if err := do(e); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

// begin prepares a round.
func begin(e *entry) (err error) {
	if err := e.prepare(); err != nil {
		return err
	}
	e.total = load.Result{}
	e.start, err = e.counters()
	return err
}

// turn does the job once. It goes on with the tuples where the turn before ended.
func turn(e *entry) error {
	job := e.job
	job.First = e.total.Begun
	if e.fresh {
		job.First = 1 + e.next // the first of all is the cached one
	}
	if job.Limit > 0 {
		if job.Limit -= e.total.Begun; job.Limit <= 0 {
			return fmt.Errorf("a round has more turns than %d connections allow", e.job.Limit)
		}
	}
	r, err := e.worker.Do(job)
	if err != nil {
		return err
	}
	if e.fresh {
		e.next += r.Numbers
	}
	rate := r.Rate()
	if e.rate != nil {
		rate = e.rate(&r)
	}
	e.rates = append(e.rates, rate)
	e.latency.Merge(r.Latency)
	e.total.Add(&r)
	return nil
}

// end believes the round's result only if all who counted agree.
func end(e *entry) error {
	now, err := e.counters()
	if err != nil {
		return err
	}
	queued := now.queued - e.start.queued
	if e.after != nil {
		err = e.after(&e.total)
	} else {
		var served load.Result
		if served, err = e.serve.Do(load.Job{Kind: load.Count, Limit: e.total.Accepted}); err == nil {
			err = e.check(&e.total, &served, queued)
		}
	}
	if err != nil {
		return err
	}
	e.lost += e.total.TimedOut
	if e.asks > 0 {
		e.cpu += now.cpu - e.start.cpu
		e.judged += int(queued)
	}
	return nil
}

func (e *entry) prepare() error {
	if err := e.flushConntrack(); err != nil {
		return err
	}
	// Forgetting costs the agent work that is not to be measured, so it is done only when the tuples run out.
	if spent := e.next > e.job.Tuples.Count()/2; e.agent != nil && (spent || !e.fresh) {
		e.next = 0
		if err := e.agent.forget(); err != nil {
			return err
		}
	}
	reset := load.Job{Kind: load.Reset}
	if e.warm > 0 {
		if _, err := e.serve.Do(reset); err != nil {
			return err
		}
		warm := e.job
		warm.Clients, warm.Limit, warm.Duration, warm.Rate = 1, e.warm, 0, 0
		r, err := e.worker.Do(warm)
		if err != nil {
			return err
		}
		reset.Limit = r.Accepted // the server may not have taken them yet
	}
	if e.before != nil {
		if err := e.before(); err != nil {
			return err
		}
	}
	_, err := e.serve.Do(reset)
	return err
}

func (e *entry) counters() (now counters, err error) {
	if e.queued != nil {
		if now.queued, err = e.queued(); err != nil {
			return now, err
		}
	}
	if e.process != 0 {
		now.cpu, err = cpuTime(e.process)
	}
	return now, err
}

// errUnbelievable says that those who counted the same thing disagree.
var errUnbelievable = errors.New("the counts do not agree")

// check compares what the client, the server and the kernel have counted.
func (e *entry) check(r, served *load.Result, queued uint64) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", errUnbelievable, fmt.Sprintf(format, args...))
	}
	arrived := served.Accepted
	if e.job.Kind == load.Request {
		arrived = int(served.Packets) / max(1, e.job.Parallel)
	}
	switch {
	case r.Begun == 0:
		return fail("nothing was begun")
	case e.job.Want == load.Refused && r.Refused != r.Begun:
		return fail("of %d connections, %d were refused", r.Begun, r.Refused)
	case e.job.Want == load.Refused && arrived+served.Overtaken > 0:
		return fail("%d denied connections reached the server", arrived)
	case e.job.Want == load.Refused:
	case r.TimedOut > r.Begun/1000:
		return fail("of %d connections, %d had no answer", r.Begun, r.TimedOut)
	case r.Accepted+r.TimedOut != r.Begun:
		return fail("of %d connections, %d were accepted", r.Begun, r.Accepted)
	case arrived+served.Overtaken < r.Accepted || arrived > r.Begun:
		return fail("the client had %d connections accepted, the server saw %d", r.Accepted, arrived)
	}
	if e.queued == nil {
		return nil
	}
	// A packet that was lost may be sent again, and what follows it at once may come before its verdict.
	low, high := e.asks*r.Begun-r.TimedOut, e.asks*(r.Begun*max(1, e.job.Parallel)+2*r.TimedOut)
	if int(queued) < low || int(queued) > high {
		return fail("%d connections, but userspace was asked about %d packets, not %d", r.Begun, queued, e.asks*r.Begun)
	}
	return nil
}

// result is what the report says of the entry.
func (e *entry) result() report.Contender {
	c := report.Contender{Name: e.name, Turns: len(e.rates), Latency: e.latency, Lost: e.lost}
	c.Low, c.Median, c.High = quartiles(e.rates)
	if e.judged > 0 && e.process != 0 {
		c.CPU = e.cpu.Seconds() / float64(e.judged) * 1e6
	}
	return c
}

// ratio compares two entries round by round.
func ratio(e, base *entry) (low, median, high float64) {
	var ratios []float64
	for i := range min(len(e.rates), len(base.rates)) {
		ratios = append(ratios, e.rates[i]/base.rates[i])
	}
	return quartiles(ratios)
}

// quartiles returns the values at a quarter, half and three quarters.
func quartiles(values []float64) (low, median, high float64) {
	if len(values) == 0 {
		return 0, 0, 0
	}
	sorted := slices.Sorted(slices.Values(values))
	at := func(q float64) float64 {
		p := q * float64(len(sorted)-1)
		i := int(p)
		if i+1 == len(sorted) {
			return sorted[i]
		}
		return sorted[i] + (p-float64(i))*(sorted[i+1]-sorted[i])
	}
	return at(0.25), at(0.5), at(0.75)
}

// against makes a result of the comparison of an entry with another; others were there, too.
func against(name, title, unit string, e, base *entry, others ...*entry) report.Result {
	r := report.Result{Name: name, Title: title, Unit: unit, Against: base.name}
	_, r.Value, _ = quartiles(e.rates)
	_, r.Baseline, _ = quartiles(base.rates)
	r.Low, r.Ratio, r.High = ratio(e, base)
	for _, c := range append([]*entry{e, base}, others...) {
		r.Contenders = append(r.Contenders, c.result())
	}
	return r
}
