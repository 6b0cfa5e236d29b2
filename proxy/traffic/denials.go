package traffic

import (
	"sync"

	"github.com/firstpacket/firstpacket/proxy/flowread"
)

// Denials sums up lines of the denied-flow log. The zero value is ready.
type Denials struct {
	mu  sync.Mutex
	sum Sum
}

// Line counts a line; what is none of a flow log is left out.
func (d *Denials) Line(line []byte) {
	r, err := flowread.Parse(line)
	if err != nil {
		return
	}
	d.Record(r)
}

// Record counts the packets of a line.
func (d *Denials) Record(r *flowread.Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sum.add(edgeKey{party(&r.Src), party(&r.Dst), Port(r.Proto, r.Dst.Port), r.Verdict}, total{r.Count, r.Time})
	for _, name := range r.Policies {
		if r.Verdict == Deny {
			d.sum.policy(name, 0, r.Count, 0)
		} else {
			d.sum.policy(name, 0, 0, r.Count)
		}
	}
}

// Graph is the sum so far.
func (d *Denials) Graph() Graph {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sum.Graph()
}

func party(s *flowread.Side) Party {
	if s.Pod != "" {
		return Workload(s.Namespace, s.Pod)
	}
	return Party{Name: s.IP.String()}
}
