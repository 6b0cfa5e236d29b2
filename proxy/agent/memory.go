package agent

import (
	"os"
	"runtime/debug"
	"time"
)

// How far the heap grows beyond what is live before garbage is collected, in percent (GOGC). Most of the heap is the
// cluster's state, which is there for good.
const (
	// startGCPercent holds while the first state comes in, which makes most of the garbage there ever is: Go's default
	// of 100 leaves the state scattered over a heap a tenth larger, 25 takes twice the processor time to start.
	startGCPercent = 50
	// steadyGCPercent holds from then on. The packet path makes no garbage and changes make little.
	steadyGCPercent = 25
)

// setGCPercent sets GOGC, unless the user has.
func setGCPercent(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// trimDelay is how long after its start an agent trims its memory.
const trimDelay = time.Second

// trimMemory gives back to the system what it took to take the first state in, which is more than to keep it: with
// 100,000 pods and 10,000 policies, 170 MiB resident against 112.
func trimMemory() {
	setGCPercent(steadyGCPercent)
	debug.FreeOSMemory()
	dropProgramPages()
}
