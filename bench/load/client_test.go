package load

import (
	"testing"
	"time"
)

// TestNumbers has clients find the time over when they have their numbers: the next job is not to begin among them.
func TestNumbers(t *testing.T) {
	r := new(clients).do(Job{Kind: Connect, Clients: 4, Duration: time.Nanosecond})
	if r.Begun != 0 || r.Numbers != 4 || r.Error != "" {
		t.Errorf("%d connections of %d numbers, %q; want 0 of 4", r.Begun, r.Numbers, r.Error)
	}
}
