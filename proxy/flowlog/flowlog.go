// Package flowlog writes the denied-flow log: one JSON line for each source, destination, destination port and deciding
// policy, at once when the first packet is refused, and with a count when more of its kind follow.
//
// A verdict never waits for its line. Each queue thread has a Ring of its own; one goroutine reads them all, gathers
// repeats in windows, formats and writes. Where it cannot follow, because packets are refused faster than lines may be
// written or because the disk is full, it loses lines, not time, and counts what it lost.
package flowlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Config says how to log. Only Output is needed; zero values of the rest give the defaults.
type Config struct {
	// Output receives one Write per line. It may block; it belongs to the log until Close has returned nil.
	Output io.Writer
	// Tee, if set, is called with each line that was written, newline included. It must not block, and the line is
	// valid during the call only.
	Tee func(line []byte)
	// Node is the name of this node, part of each line.
	Node string
	// Producers is the number of threads that refuse packets; each has the Ring of its index. Default 1.
	Producers int
	// Window is how long repeats of a refused flow are gathered before a line tells their number. Default 10 s.
	Window time.Duration
	// LinesPerSecond bounds what is written, and so the growth of the file; bursts may be as large. Default 200.
	LinesPerSecond int
	// MaxOpen is the largest number of flows gathered at a time; refused packets of further flows are lost to the log
	// until windows end. A flow takes about 600 bytes. Default 8192.
	MaxOpen int
	// RingSize is the number of records a thread may be ahead of the log, rounded up to a power of two; a record takes
	// 160 bytes. Default 4096.
	RingSize int
}

const (
	defaultWindow         = 10 * time.Second
	defaultLinesPerSecond = 200
	defaultMaxOpen        = 8192
	defaultRingSize       = 4096
	// pollInterval is how often the rings are looked at. Producers wake nobody: a wake-up costs a packet's thread more
	// than the whole record, and a line may well be this late.
	pollInterval = 50 * time.Millisecond
)

func (c *Config) validate() error {
	if c.Output == nil {
		return errors.New("flow log: no output")
	}
	if c.Producers < 0 || c.Window < 0 || c.LinesPerSecond < 0 || c.MaxOpen < 0 || c.RingSize < 0 {
		return fmt.Errorf("flow log: negative value in %+v", *c)
	}
	setDefault(&c.Producers, 1)
	setDefault(&c.Window, defaultWindow)
	setDefault(&c.LinesPerSecond, defaultLinesPerSecond)
	setDefault(&c.MaxOpen, defaultMaxOpen)
	setDefault(&c.RingSize, defaultRingSize)
	return nil
}

func setDefault[T int | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// Stats are totals since the log was made.
type Stats struct {
	// Lines were written in full.
	Lines uint64
	// Lost is the number of refused packets that no line counts: a ring or the table of flows was full, or their line
	// was suppressed, or could not be written before the log was closed.
	Lost uint64
	// Suppressed is the number of lines that were not written because of LinesPerSecond.
	Suppressed uint64
	// WriteErrors is the number of writes that failed. Their packets are part of a later line.
	WriteErrors uint64
}

// Log is a running denied-flow log.
type Log struct {
	rings []*Ring
	w     *writer
	table *table

	lines, lost, suppressed, writeErrors atomic.Uint64

	stop chan struct{}
	once sync.Once
	done chan struct{}
}

// New starts the log. It runs until Close.
func New(cfg Config) (*Log, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	l := &Log{
		w:    newWriter(cfg.Output, cfg.Tee, cfg.Node),
		stop: make(chan struct{}),
		done: make(chan struct{}),
	}
	l.table = newTable(l, cfg.Window, cfg.MaxOpen, cfg.LinesPerSecond)
	size := 1
	for size < cfg.RingSize {
		size <<= 1
	}
	for range cfg.Producers {
		l.rings = append(l.rings, newRing(size))
	}
	go l.run()
	return l, nil
}

// Ring returns the ring of a producer, 0 <= i < Config.Producers.
func (l *Log) Ring(i int) *Ring { return l.rings[i] }

// Stats may be called at any time, also after Close.
func (l *Log) Stats() Stats {
	s := Stats{
		Lines:       l.lines.Load(),
		Lost:        l.lost.Load(),
		Suppressed:  l.suppressed.Load(),
		WriteErrors: l.writeErrors.Load(),
	}
	for _, r := range l.rings {
		s.Lost += r.lost.Load()
	}
	return s
}

// Close writes what is still open and ends the log; producers must have ended before, or their last records are not
// read. It returns when everything is written, or with the context's error when the output blocks for longer, in which
// case the log's goroutine ends only with its blocked write. The output is not closed.
func (l *Log) Close(ctx context.Context) error {
	l.once.Do(func() { close(l.stop) })
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("flow log: output blocks: %w", ctx.Err())
	}
}

func (l *Log) run() {
	defer close(l.done)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.drain()
			l.table.expire(time.Now())
		case <-l.stop:
			l.drain()
			l.table.flush()
			return
		}
	}
}

func (l *Log) drain() {
	now := time.Now()
	for _, r := range l.rings {
		r.drain(func(rec *Record) { l.table.add(rec, now) })
	}
}
