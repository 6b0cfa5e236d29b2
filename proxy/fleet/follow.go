package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"time"
)

const (
	// firstPause and lastPause bound the time between two attempts to reach an agent.
	firstPause = time.Second
	lastPause  = 15 * time.Second
	// remembered is how many lines are known again after a connection was lost: more than an agent remembers.
	remembered = 4096
	// maxLine bounds a line in bytes.
	maxLine = 1 << 20
)

// errEnded is reported when an agent ends its stream: it stopped, or the reader was too slow.
var errEnded = errors.New("the stream of denied flows ended")

// Follow reads the agent's denied flows, those it remembers first, and goes on until the context ends, which is the end
// of the reader. When the agent cannot be reached, report is told why and it tries again; when it is back, report is
// told nil. No line is read twice. The reader is to be read to its end.
func (a *Agent) Follow(ctx context.Context, report func(error)) io.Reader {
	r, w := io.Pipe()
	stop := context.AfterFunc(ctx, func() { w.Close() })
	go func() {
		defer stop()
		defer w.Close()
		f := follower{agent: a, out: w, seed: maphash.MakeSeed(), seen: map[uint64]struct{}{}}
		f.run(ctx, report)
	}()
	return r
}

type follower struct {
	agent *Agent
	out   io.Writer
	seed  maphash.Seed
	seen  map[uint64]struct{}
	order []uint64 // of seen, a ring
	next  int
}

func (f *follower) run(ctx context.Context, report func(error)) {
	pause, lost := firstPause, false
	for {
		err := f.once(ctx, func() {
			if lost {
				report(nil)
			}
			pause, lost = firstPause, false
		})
		if ctx.Err() != nil {
			return
		}
		if !lost {
			report(err)
		}
		lost = true
		select {
		case <-time.After(pause):
			pause = min(2*pause, lastPause)
		case <-ctx.Done():
			return
		}
	}
}

// once follows one stream to its end; connected is called when there is one.
func (f *follower) once(ctx context.Context, connected func()) error {
	stream, err := f.agent.Flows(ctx, true)
	if err != nil {
		return err
	}
	defer stream.Close()
	connected()
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		if f.known(lines.Bytes()) {
			continue
		}
		if _, err := fmt.Fprintf(f.out, "%s\n", lines.Bytes()); err != nil {
			return err // the reader's end is the context's
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w: %w", f.agent.Name, errEnded, err)
	}
	return fmt.Errorf("%s: %w", f.agent.Name, errEnded)
}

// known tells whether the line was read before, and remembers it.
func (f *follower) known(line []byte) bool {
	sum := maphash.Bytes(f.seed, line)
	if _, ok := f.seen[sum]; ok {
		return true
	}
	if len(f.order) < remembered {
		f.order = append(f.order, sum)
	} else {
		delete(f.seen, f.order[f.next])
		f.order[f.next] = sum
		f.next = (f.next + 1) % remembered
	}
	f.seen[sum] = struct{}{}
	return false
}
