package failure

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// TestRevocation opens flows of every kind, forbids some of them, and allows them again.
func TestRevocation(t *testing.T) {
	for _, how := range []string{"drop", "reject"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, "--deny-with", how)
			b.apply(admitting("client", "friend"))
			type opened struct {
				name string
				*probe.Flow
			}
			var cut, kept []opened
			for _, proto := range []probe.Proto{probe.TCP, probe.UDP} {
				for _, v6 := range []bool{false, true} {
					name := fmt.Sprint(proto, " IPv6 ", v6)
					cut = append(cut, opened{"client to server, " + name, b.flow("client", "server", proto, v6)})
					kept = append(kept, opened{"friend to server, " + name, b.flow("friend", "server", proto, v6)},
						opened{"client to bystander, " + name, b.flow("client", "bystander", proto, v6)})
				}
			}
			pair, err := b.connect("client", "server", 81)
			b.must(err)
			b.must(send(pair.near, pair.far, patience))

			b.apply(admitting("friend"))
			if got := b.status().Revoked; got != 5 {
				t.Errorf("%d flows revoked, want 5: those of the client and no others", got)
			}
			err = send(pair.far, pair.near, 100*time.Millisecond) // what the server sends is refused, too
			if how == "reject" && !errors.Is(err, unix.ECONNRESET) && !isTimeout(err) || err == nil {
				t.Errorf("server to client: %v", err)
			}
			for _, f := range cut {
				if how == "drop" {
					f.Wait = probe.DefaultWait
				}
				r := f.Exchange()
				if want := map[string]probe.Outcome{"drop": probe.Silent, "reject": probe.Refused}[how]; r.Outcome != want {
					t.Errorf("%s: %v, want %v", f.name, r, want)
				}
			}
			for _, f := range kept {
				for range 3 {
					if r := f.Exchange(); r.Outcome != probe.Reached {
						t.Errorf("%s: %v", f.name, r)
					}
				}
			}
			b.logged("revoked", "client", "server")

			b.apply(admitting("client", "friend"))
			// Connections that were reset have ended.
			if got := b.status().Restored; got > 5 || got < map[string]uint64{"drop": 5, "reject": 2}[how] {
				t.Errorf("%d flows restored", got)
			}
			for _, f := range cut {
				f.Wait = patience
				// A connection that was reset is gone for good.
				if r := f.Exchange(); r.Outcome != probe.Reached && (how == "drop" || r.Outcome != probe.Refused) {
					t.Errorf("%s, allowed again: %v", f.name, r)
				}
			}
		})
	}
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// logged waits for a line of the denied-flow log.
func (b *bed) logged(reason, from, to string) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, r := range b.Denied() {
			if r.Reason == reason && r.Src.Pod == from && r.Dst.Pod == to &&
				slices.Contains(r.Policies, "NetworkPolicy/default/server") {
				return
			}
		}
	}
	b.t.Errorf("no line with reason %s from %s to %s in %+v", reason, from, to, b.Denied())
}

// TestFlowsOlderThanIsolation: nobody was asked about these flows when they began.
func TestFlowsOlderThanIsolation(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	allowed, forbidden := b.flow("friend", "server", probe.UDP, false), b.flow("client", "server", probe.TCP, false)
	b.apply(admitting("friend"))
	before := b.metrics().Sum("firstpacket_queue_packets_total")
	for range 3 {
		if r := allowed.Exchange(); r.Outcome != probe.Reached {
			t.Errorf("allowed: %v", r)
		}
	}
	if n := b.metrics().Sum("firstpacket_queue_packets_total") - before; n != 0 {
		t.Errorf("%v packets of the allowed flow were asked about", n)
	}
	forbidden.Wait = probe.DefaultWait
	if r := forbidden.Exchange(); !r.Denied() {
		t.Errorf("forbidden: %v", r)
	}
}

// TestFlowsOlderThanTheAgent: policy changes while no agent runs.
func TestFlowsOlderThanTheAgent(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("client", "friend"))
	cut, kept := b.flow("client", "server", probe.TCP, false), b.flow("friend", "server", probe.TCP, false)
	b.must(b.Kill("one"))
	ctx, cancel := b.ctx()
	defer cancel()
	b.must(b.ApplyYAML(ctx, admitting("friend")))
	if r := cut.Exchange(); r.Outcome != probe.Reached {
		t.Errorf("while no agent runs: %v", r)
	}
	b.must(b.Start(ctx, "one"))
	cut.Wait = probe.DefaultWait
	if r := cut.Exchange(); !r.Denied() {
		t.Errorf("forbidden flow after the start: %v", r)
	}
	if r := kept.Exchange(); r.Outcome != probe.Reached {
		t.Errorf("allowed flow after the start: %v", r)
	}
	// What the dead agent had the kernel learn is judged again as well.
	b.denied("client", "server")
	b.reaches("friend", "server")
}

// TestNewConnectionBetweenRevokedPorts: conntrack keeps an established connection for days after it was cut.
func TestNewConnectionBetweenRevokedPorts(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("client"))
	old, err := b.connectFrom("client", "server", 81, 40000)
	b.must(err)
	b.apply(admitting("friend"))
	if err := send(old.near, old.far, 100*time.Millisecond); err == nil {
		t.Error("the revoked connection goes on")
	}
	old.abort()
	if c, err := b.connectFrom("client", "server", 81, 40000); err == nil {
		t.Error("a forbidden connection between the same ports came to be")
		c.abort()
	}
	b.apply(admitting("client"))
	again, err := b.connectFrom("client", "server", 81, 40000)
	b.must(err)
	b.must(send(again.near, again.far, patience))
}
