package failure

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// longest counts what became of a storm.
func longest(attempts []attempt) (slowest time.Duration, refused, timedOut int) {
	for _, a := range attempts {
		var timeout interface{ Timeout() bool }
		switch {
		case a.err == nil:
			slowest = max(slowest, a.ended.Sub(a.begun))
		case errors.As(a.err, &timeout) && timeout.Timeout():
			timedOut++
		default:
			refused++
		}
	}
	return slowest, refused, timedOut
}

// second prepares another agent for the bed's node. It answers HTTP where the first one does, once that has ended.
func (b *bed) second(args ...string) *agents.Agent {
	b.t.Helper()
	path := b.binary
	starter := ns.NewStarter()
	n, err := b.Place("node/one")
	b.must(err)
	a := agents.New(agents.Config{
		Binary: path, Args: args, Node: "one", Manifests: b.Dir(), Namespace: n.NS, Starter: starter,
	})
	b.t.Cleanup(func() {
		if b.t.Failed() {
			for _, line := range a.Output().Lines() {
				b.t.Log("second: ", line)
			}
		}
		a.Kill()
		starter.Close()
	})
	return a
}

// TestRestart ends the agent in two ways and starts it again, while connections are opened at a steady rate.
func TestRestart(t *testing.T) {
	for _, how := range []string{"SIGKILL", "SIGTERM"} {
		t.Run(how, func(t *testing.T) {
			b := newBed(t)
			b.apply(admitting("client"))
			held := b.flow("client", "server", probe.TCP, false)
			// Every connection has a tuple that the kernel has not learnt.
			allowed := b.startStorm("client", "server", 2000, 4, 5*time.Millisecond, 10*time.Second)
			forbidden := b.startForbidden("friend", "server")
			stop := b.keepTalking(held)
			for range 2 {
				time.Sleep(200 * time.Millisecond)
				ctx, cancel := b.ctx()
				if how == "SIGKILL" {
					b.must(b.Kill("one"))
				} else {
					b.must(b.Stop(ctx, "one"))
				}
				b.must(b.Start(ctx, "one"))
				cancel()
			}
			time.Sleep(200 * time.Millisecond)
			turns, slowestTurn := stop()
			attempts := allowed.stop()
			slowest, refused, timedOut := longest(attempts)
			t.Logf("%d connections, the longest took %v; %d turns of the established flow, the longest took %v",
				len(attempts), slowest.Round(time.Millisecond), turns, slowestTurn.Round(time.Millisecond))
			if refused+timedOut > 0 {
				t.Errorf("%d allowed connections refused, %d timed out", refused, timedOut)
			}
			if n := forbidden(); n > 0 {
				t.Errorf("%d forbidden connections came to be", n)
			}
		})
	}
}

// TestHandOver runs one agent after the other on the node, each started while the one before serves.
func TestHandOver(t *testing.T) {
	b := newBed(t)
	b.apply(admitting("client"))
	held := b.flow("client", "server", probe.TCP, false)
	allowed := b.startStorm("client", "server", 2000, 4, 5*time.Millisecond, 10*time.Second)
	forbidden := b.startForbidden("friend", "server")
	stop := b.keepTalking(held)
	ctx, cancel := b.ctx()
	defer cancel()
	old := b.agent()
	for i := range 3 { // the third agent takes the first one's queues again
		time.Sleep(200 * time.Millisecond)
		next := b.second()
		b.must(next.Start())
		eventually(t, "the old agent ends", func() bool { return !old.Running() })
		b.must(next.WaitReady(ctx))
		if !told(old, "handing on") || !told(old, "stopped: another agent has taken over") {
			t.Errorf("agent %d did not tell of its end: %q", i, old.Output().Lines())
		}
		if !told(next, "taking over") {
			t.Errorf("agent %d did not tell that it took over: %q", i+1, next.Output().Lines())
		}
		old = next
	}
	time.Sleep(200 * time.Millisecond)
	turns, slowestTurn := stop()
	attempts := allowed.stop()
	slowest, refused, timedOut := longest(attempts)
	t.Logf("%d connections, the longest took %v; %d turns of the established flow, the longest took %v",
		len(attempts), slowest.Round(time.Millisecond), turns, slowestTurn.Round(time.Millisecond))
	if refused+timedOut > 0 {
		t.Errorf("%d allowed connections refused, %d timed out", refused, timedOut)
	}
	// A packet that was lost would have been sent again after a second.
	if slowest > time.Second {
		t.Errorf("a connection took %v: its packet was lost", slowest)
	}
	if n := forbidden(); n > 0 {
		t.Errorf("%d forbidden connections came to be", n)
	}
	if len(attempts) < 100 {
		t.Errorf("%d connections: the storm proves nothing", len(attempts))
	}
}

// eventually waits for something to become true.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func told(a *agents.Agent, what string) bool {
	return slices.ContainsFunc(a.Output().Lines(), func(l string) bool { return strings.Contains(l, what) })
}

// startForbidden tries forbidden connections all the while; the function returned tells how many came to be.
func (b *bed) startForbidden(from, to string) func() int {
	b.t.Helper()
	source, target := b.place(from).NS, b.place(to).At(false, 80)
	done, result := make(chan struct{}), make(chan int, 1)
	go func() {
		n := 0
		for {
			select {
			case <-done:
				result <- n
				return
			default:
			}
			results, err := b.Probe(b.t.Context(), probe.Probe{
				From: source, To: target, Proto: probe.TCP, Wait: 50 * time.Millisecond,
			})
			if err == nil && (results[0].Connected || results[0].Outcome == probe.Reached) {
				n++
			}
		}
	}()
	return func() int { close(done); return <-result }
}

// keepTalking exchanges over a flow all the while; the function returned tells how often, and the longest time it took.
func (b *bed) keepTalking(f *probe.Flow) func() (int, time.Duration) {
	f.Wait = patience
	done, ended := make(chan struct{}), make(chan struct{})
	turns, slowest := 0, time.Duration(0)
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
			r := f.Exchange()
			if r.Outcome != probe.Reached {
				b.t.Errorf("established flow, turn %d: %v", turns, r)
				return
			}
			turns++
			slowest = max(slowest, r.Latency)
		}
	}()
	return func() (int, time.Duration) { close(done); <-ended; return turns, slowest }
}

// TestStoppedAgent: packets wait for an agent that stands still, and nothing forbidden passes meanwhile.
func TestStoppedAgent(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("client"))
	b.must(unix.Kill(b.agent().PID(), unix.SIGSTOP))
	r := make(chan probe.Result)
	go func() { r <- b.probe("client", "server", probe.TCP, patience) }()
	b.denied("friend", "server")
	b.must(unix.Kill(b.agent().PID(), unix.SIGCONT))
	if r := <-r; r.Outcome != probe.Reached {
		t.Errorf("a connection that began while the agent stood still: %v", r)
	}
	b.denied("friend", "server")
}
