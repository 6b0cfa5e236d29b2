package scenario

import (
	"os"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/world"
)

func TestZZEvent(t *testing.T) {
	s := &Suite{cfg: Config{Quick: true, Worker: []string{"/proc/self/exe", "worker"}, Agent: "/tmp/fpbench", Log: os.Stderr}, starter: ns.NewStarter(), dir: t.TempDir()}
	defer s.starter.Close()
	c, err := s.openAgent(t.Context(), "x", world.World{Pods: 10000, StagePolicies: 1, Policies: 999}, "--profiling", "--deny-with", "reject")
	if err != nil {
		t.Fatal(err)
	}
	prof := make(chan []byte)
	go func() {
		b, err := c.agent.Get(t.Context(), "/debug/pprof/profile?seconds=3")
		if err != nil {
			t.Log(err)
		}
		prof <- b
	}()
	time.Sleep(100 * time.Millisecond)
	before, _ := cpuTime(c.process)
	took, err := s.flips(t.Context(), c, func(admit bool) error { _, err := c.agent.feed.Update(stagePolicy(admit)); return err })
	if err != nil {
		t.Fatal(err)
	}
	after, _ := cpuTime(c.process)
	t.Log("p50", took[len(took)/2], "p99", took[len(took)*99/100], "cpu/event", (after-before)/time.Duration(len(took)))
	os.WriteFile("/tmp/event.pb.gz", <-prof, 0o644)
	c.close()
}
