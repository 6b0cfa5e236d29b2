//go:build vm

package guest

import (
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// TestBridgedPods enforces between pods of one bridge, whose packets pass netfilter because br_netfilter hands them on.
func TestBridgedPods(t *testing.T) {
	b := newBed(t, lab.Options{Bridged: true}, allowClient)
	client, other := b.place("default/client"), b.place("default/other")
	for _, name := range []string{"default/web-1", "default/web-2"} {
		web := b.place(name)
		everyWay(func(v6 bool, proto probe.Proto) {
			b.reaches(probe.Probe{From: client.NS, To: web.At(v6, 8080), Proto: proto}, name)
			b.fails(probe.Probe{From: other.NS, To: web.At(v6, 8080), Proto: proto})
		})
	}
}
