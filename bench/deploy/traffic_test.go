package deploy

import (
	"sync"
	"sync/atomic"
)

// traffic are connections that are tried all the while, allowed and forbidden ones.
type traffic struct {
	done            chan struct{}
	running         sync.WaitGroup
	allowed, failed atomic.Int64
	passed          atomic.Int64
}

// talk begins to connect from the client's pod to the server's.
func (n *node) talk() *traffic {
	tr := &traffic{done: make(chan struct{})}
	each := func(try func()) {
		tr.running.Go(func() {
			for {
				select {
				case <-tr.done:
					return
				default:
					try()
				}
			}
		})
	}
	each(func() {
		if !n.reaches(allowed) {
			tr.failed.Add(1)
		}
		tr.allowed.Add(1)
	})
	each(func() {
		if n.reaches(other) {
			tr.passed.Add(1)
		}
	})
	return tr
}

// made is the number of allowed connections that were tried.
func (tr *traffic) made() int64 { return tr.allowed.Load() }

// end stops, and returns how many allowed connections failed and how many forbidden ones came about.
func (tr *traffic) end() (failed, passed int64) {
	close(tr.done)
	tr.running.Wait()
	return tr.failed.Load(), tr.passed.Load()
}
