package scenario

import (
	"io"
	"os"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/world"
)

func TestZZHeap(t *testing.T) {
	s := &Suite{cfg: Config{Worker: []string{"/proc/self/exe", "worker"}, Agent: "/tmp/fpbench", Log: io.Discard}, starter: ns.NewStarter(), dir: t.TempDir()}
	defer s.starter.Close()
	c, err := s.openAgent(t.Context(), "x", world.World{Pods: 100000, StagePolicies: 10, Policies: 9990}, "--profiling")
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		time.Sleep(time.Second)
		u, _ := memoryOf(c.process)
		m, _ := c.agent.Metrics(t.Context())
		t.Log(u, m["go_memstats_heap_alloc_bytes"]/1e6, m["go_memstats_heap_inuse_bytes"]/1e6, m["go_memstats_heap_idle_bytes"]/1e6, m["go_memstats_heap_released_bytes"]/1e6, m["go_memstats_next_gc_bytes"]/1e6, m["go_memstats_sys_bytes"]/1e6, m["process_cpu_seconds_total"])
	}
	b, err := c.agent.Get(t.Context(), "/debug/pprof/heap?gc=1")
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile("/tmp/heap.pb.gz", b, 0o644)
	m, _ := c.agent.Metrics(t.Context())
	u, _ := memoryOf(c.process)
	t.Log(u, m["go_memstats_heap_alloc_bytes"]/1e6, m["go_memstats_next_gc_bytes"]/1e6)
	c.close()
}
