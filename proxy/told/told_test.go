package told

import (
	"net/netip"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/policycache/engine"
)

// TestClock: what is read back is what was written, by this program and by the next.
func TestClock(t *testing.T) {
	c := NewClock()
	f := engine.Fact{
		Pod: netip.MustParseAddr("10.0.1.2"), Addr: netip.MustParseAddr("2001:db8::1"), Of: 7, Name: "www.example.com",
		Until: time.Now().Add(time.Minute + 1234567),
	}
	written := c.Of([]engine.Fact{f})
	if again := c.Of(c.Facts(written)); again[0] != written[0] {
		t.Errorf("%+v, and after reading it %+v", written, again)
	}
	read := NewClock().Facts(written)[0]
	if read.Until = f.Until; read != f {
		t.Errorf("%+v became %+v", f, read)
	}
	past := f
	past.Until = time.Now().Add(-24 * 365 * time.Hour) // before the machine was started
	if got := c.Facts(c.Of([]engine.Fact{past}))[0].Until; past.Until.Sub(got).Abs() > time.Millisecond {
		t.Errorf("%v became %v", past.Until, got)
	}
}
