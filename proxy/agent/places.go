package agent

import "runtime"

// addPlaces lets n more threads run Go code at a time (GOMAXPROCS) until the function it returns is called. Queue
// threads keep their places while they wait for the next packet; without places of their own, a busy queue would leave
// none to the goroutines that bring changes into force.
func addPlaces(n int) (restore func()) {
	before := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(before + n)
	return func() { runtime.GOMAXPROCS(before) }
}
