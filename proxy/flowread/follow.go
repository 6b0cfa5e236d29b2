package flowread

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Window is long enough for what several nodes log at the same time to come from all of them.
const Window = 300 * time.Millisecond

// Follow hands records to the sink as they come, from all sources at once, until all of these have ended or a sink or
// source fails. Then stop is called, perhaps more than once, which must bring the sources to their ends. Records that
// come within the window are put into the order of their times, so none is shown later than that; with a window of 0
// each is shown at once.
func Follow(sources []Source, f Filter, sink Sink, window time.Duration, stop func()) (Stats, error) {
	came := make(chan arrival)
	go func() {
		defer close(came)
		var group sync.WaitGroup
		for _, s := range sources {
			group.Go(func() { read(s, came) })
		}
		group.Wait()
	}()
	var tick <-chan time.Time
	if window > 0 {
		ticker := time.NewTicker(window / 2)
		defer ticker.Stop()
		tick = ticker.C
	}
	var (
		st   Stats
		held held
		errs []error
	)
	for open := true; open; {
		var ready []arrival
		select {
		case <-tick:
			ready = held.due()
		case a, ok := <-came:
			st.Read += a.stats.Read
			st.Unreadable += a.stats.Unreadable
			switch {
			case !ok:
				open, ready = false, held.all()
			case a.err != nil:
				errs = append(errs, a.err)
			case a.record == nil || !f.Matches(a.record):
			case window == 0:
				ready = []arrival{a}
			default:
				held.fresh = append(held.fresh, a)
			}
		}
		for _, a := range ready {
			if errs != nil {
				break
			}
			st.Picked++
			if err := sink.Record(a.line, a.record); err != nil {
				errs = append(errs, err)
			}
		}
		if errs != nil {
			stop()
		}
	}
	stop()
	if err := errors.Join(errs...); !errors.Is(err, context.Canceled) {
		return st, err
	}
	return st, nil
}

// arrival is a record that a source had, or its end.
type arrival struct {
	line   []byte
	record *Record
	err    error
	stats  Stats
}

// read sends what the source has until it ends or fails.
func read(s Source, came chan<- arrival) {
	in := newInput(s)
	for {
		var a arrival
		ok, err := in.next(&a.stats)
		if ok {
			a.line, a.record = bytes.Clone(in.line), in.record
		}
		a.err = err
		came <- a
		if !ok {
			return
		}
	}
}

// held are records that wait for earlier ones: fresh those that came since due was called last, old those before.
type held struct{ old, fresh []arrival }

// due takes what has waited since the last call but one, and whatever is earlier than that.
func (h *held) due() []arrival {
	ready, fresh := h.old, h.fresh
	h.old, h.fresh = nil, nil
	if len(ready) > 0 {
		last := slices.MaxFunc(ready, byTime).record.Time
		for _, a := range fresh {
			if a.record.Time.Before(last) {
				ready = append(ready, a)
			} else {
				h.old = append(h.old, a)
			}
		}
		fresh = nil
	}
	h.old = append(h.old, fresh...)
	slices.SortStableFunc(ready, byTime)
	return ready
}

// all takes everything.
func (h *held) all() []arrival {
	ready := slices.Concat(h.old, h.fresh)
	slices.SortStableFunc(ready, byTime)
	return ready
}

func byTime(a, b arrival) int { return a.record.Time.Compare(b.record.Time) }
