package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestGenerationNumberIsNotReusedWhileInUse(t *testing.T) {
	u := &viewUser{}
	p := &publisher{users: []*viewUser{{}, u}}
	p.current.Store(&view{generation: 3})
	if v := u.acquire(p); v.generation != 3 {
		t.Fatalf("acquired generation %d", v.generation)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := p.waitReusable(ctx, 18, 16); err != nil {
		t.Errorf("generation 18 has another number than 3 modulo 16, but: %v", err)
	}
	if err := p.waitReusable(ctx, 19, 16); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("19 is 3 again modulo 16 and a thread still works under 3, but waiting ended with %v", err)
	}
	u.release()
	if err := p.waitReusable(t.Context(), 19, 16); err != nil {
		t.Errorf("after release: %v", err)
	}
}

func TestGenerationWraps(t *testing.T) {
	u := &viewUser{}
	p := &publisher{users: []*viewUser{u}}
	p.current.Store(&view{generation: ^uint32(0)})
	u.acquire(p)
	if err := p.waitReusable(t.Context(), 4, 16); err != nil { // 2^32-1 + 5: five generations on
		t.Error(err)
	}
}

func TestAcquireNeverClaimsReplacedView(t *testing.T) {
	p := &publisher{users: []*viewUser{{}}}
	p.current.Store(&view{generation: 1})
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for g := uint32(2); ; g++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := p.waitReusable(t.Context(), g, 16); err != nil {
				t.Error(err)
				return
			}
			p.current.Store(&view{generation: g})
		}
	}()
	u := p.users[0]
	for range 100_000 {
		v := u.acquire(p)
		// While claimed, the writer may move on by less than a full round of numbers.
		if now := p.current.Load().generation; now-v.generation >= 16 {
			t.Errorf("generation %d in use while the writer is at %d", v.generation, now)
			break
		}
		u.release()
	}
	close(stop)
	<-done
}

func TestBanksNeverShareANumber(t *testing.T) {
	for _, numbers := range []int{4, 16, 64} {
		marks := [2]map[uint32]bool{{}, {}}
		for bank := range marks {
			last := uint32(1<<32 - 100) // and past the end of the numbers
			for range 300 {
				next := nextGeneration(last, bank, numbers)
				if next-last > uint32(numbers) || next == 0 {
					t.Fatalf("bank %d of %d numbers: %d comes after %d", bank, numbers, next, last)
				}
				marks[bank][next%uint32(numbers)] = true
				last = next
			}
		}
		for m := range marks[0] {
			if marks[1][m] {
				t.Errorf("of %d numbers, both banks have %d", numbers, m)
			}
		}
		if len(marks[0])+len(marks[1]) != numbers {
			t.Errorf("of %d numbers, %d and %d are used", numbers, len(marks[0]), len(marks[1]))
		}
	}
}

func TestQuiesceWaitsForTheBatch(t *testing.T) { synctest.Test(t, testQuiesce) }

func testQuiesce(t *testing.T) {
	u := &viewUser{}
	p := &publisher{users: []*viewUser{{}, u}}
	p.current.Store(&view{generation: 1})
	if err := p.quiesce(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.acquire(p)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.quiesce(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while a thread has a batch in hand: %v", err)
	}
	done := make(chan error)
	go func() { done <- p.quiesce(t.Context()) }()
	time.Sleep(time.Millisecond) // it waits by now
	u.release()
	u.acquire(p) // the next batch is not waited for
	if err := <-done; err != nil {
		t.Error(err)
	}
}
