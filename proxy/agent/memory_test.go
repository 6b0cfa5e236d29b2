package agent

import (
	"runtime/debug"
	"testing"
)

func TestTrimMemory(t *testing.T) {
	const other = 77
	defer debug.SetGCPercent(debug.SetGCPercent(other))
	t.Setenv("GOGC", "77")
	trimMemory()
	if got := debug.SetGCPercent(other); got != other {
		t.Errorf("GOGC is set to %d, and %d holds", other, got)
	}
	t.Setenv("GOGC", "")
	trimMemory()
	if got := debug.SetGCPercent(other); got != steadyGCPercent {
		t.Errorf("GOGC is not set, and %d holds, want %d", got, steadyGCPercent)
	}
}
