package agent

import (
	"os"
	"runtime/debug"
)

// steadyGCPercent is how far the heap grows beyond what is live before garbage is collected, in percent, once the first
// state is in force. The packet path makes no garbage and changes make little, so that collecting four times as often
// as Go's default costs next to nothing, and the cluster's state is most of the memory for good.
const steadyGCPercent = 25

// trimMemory gives back to the system what it took to take the first state in, which is more than to keep it: with
// 100,000 pods, 180 MiB against 110. Until then Go's default holds, under which an agent starts in half the time.
// Whoever sets GOGC decides.
func trimMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(steadyGCPercent)
	}
	debug.FreeOSMemory()
}
