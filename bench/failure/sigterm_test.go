package failure

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestEndAtAnyMoment asks agents to end at all moments of their lives, while the cluster changes: they do, with
// status 0.
func TestEndAtAnyMoment(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("friend"))
	changed := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(changed)
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-time.After(3 * time.Millisecond):
			}
			app := []string{"client", "bystander"}[i%2]
			if err := b.ApplyYAML(t.Context(), policyFor(fmt.Sprint("other-", i%5), app, "friend")); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	ctx, cancel := b.ctx()
	defer cancel()
	b.must(b.Stop(ctx, "one"))
	a := b.agent()
	started := func() (n int) {
		for _, line := range a.Output().Lines() {
			if strings.Contains(line, `"message":"starting"`) {
				n++
			}
		}
		return n
	}
	round := func(i int) {
		ctx, cancel := b.ctx()
		defer cancel()
		before := started()
		b.must(a.Start())
		eventually(t, "the agent starts", func() bool { return started() > before })
		if i%3 == 0 {
			b.must(a.WaitReady(ctx))
		}
		time.Sleep(time.Duration(i) * 5 * time.Millisecond)
		if err := a.Stop(ctx); err != nil {
			t.Errorf("stopped %d ms after its start: %v", i*5, err)
		}
	}
	for i := range 30 {
		round(i)
	}
	close(done)
	<-changed
	for _, line := range a.Output().Lines() {
		if strings.Contains(line, "closed") || strings.Contains(line, "canceled") {
			t.Errorf("it said: %s", line)
		}
	}
	ctx, cancel = b.ctx()
	defer cancel()
	b.must(b.Start(ctx, "one"))
	b.asBefore()
}
