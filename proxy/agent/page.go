package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/explain"
	"github.com/firstpacket/firstpacket/proxy/flowlog"
	"github.com/firstpacket/firstpacket/proxy/flowstream"
	"github.com/firstpacket/firstpacket/proxy/page"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
	"github.com/firstpacket/firstpacket/proxy/traffic"
)

// pageTraffic is what the page is made of, beside the agent's state.
type pageTraffic struct {
	denials traffic.Denials

	mu        sync.Mutex
	evaluator *engine.Evaluator // made when it is first needed
}

// publishFlow hands a line of the flow log to those who watch.
func (a *agent) publishFlow(line []byte) {
	a.flows.Publish(line)
	a.traffic.denials.Line(line)
}

// pages are the endpoints that show what the agent does, by path.
func (a *agent) pages() map[string]http.Handler {
	answer := explain.Handler(func() *engine.Snapshot { return a.controller.status().Snapshot })
	private := page.Handlers(page.Config{
		Title: a.cfg.NodeName, Flows: a.flows, Explain: answer,
		Traffic: func(context.Context) traffic.Graph { return a.graph() },
		Agents:  func(context.Context) []page.Agent { return []page.Agent{a.asPageAgent()} },
	})
	private[flowstream.Path] = flowstream.Handler(a.flows)
	private[traffic.Path] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// The client that went away is the only possible failure, and nobody is left to tell.
		_ = json.NewEncoder(w).Encode(a.graph())
	})
	all := map[string]http.Handler{explain.Path: answer}
	for path, h := range private {
		if !a.cfg.ExposePage {
			h = page.Private(h)
		}
		all[path] = h
	}
	return all
}

func (a *agent) asPageAgent() page.Agent {
	s := a.status()
	return page.Agent{
		Node: s.Node, Version: s.Version, NotReady: s.NotReady, Generation: s.Generation, Policies: s.Policies,
		Problems: s.Problems,
	}
}

// graph sums up the tuples that the kernel admits without asking, by the rules that admit them, and what was refused.
func (a *agent) graph() traffic.Graph {
	var sum traffic.Sum
	sum.Add(a.traffic.denials.Graph())
	snapshot := a.controller.status().Snapshot
	if snapshot == nil {
		return sum.Graph()
	}
	a.traffic.mu.Lock()
	defer a.traffic.mu.Unlock()
	if a.traffic.evaluator == nil {
		a.traffic.evaluator = engine.NewEvaluator(pairCache)
	}
	for _, t := range a.learned.list() {
		v := judgeTuple(a.traffic.evaluator, snapshot, t)
		if v.Action != engine.Allow {
			continue // about to leave the kernel
		}
		sum.Admitted(partyOf(snapshot, t.Src), partyOf(snapshot, t.Dst), traffic.Port(flowlog.ProtoName(t.Proto), t.DstPort),
			admitting(&v))
	}
	return sum.Graph()
}

// admitting names the policies whose rules allow the flow.
func admitting(v *engine.Verdict) []string {
	var names []string
	for _, d := range []*engine.Decision{v.Egress, v.Ingress} {
		if d == nil || d.Reason != engine.AllowedByRule {
			continue
		}
		for _, ref := range d.Policies {
			if name := ref.String(); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

func partyOf(s *engine.Snapshot, addr netip.Addr) traffic.Party {
	if e := s.Endpoint(addr); e != nil && e.Kind == identity.Pod {
		return traffic.Workload(e.Namespace, e.Name)
	}
	return traffic.Party{Name: addr.String()}
}

// judgeTuple judges a cached tuple as its next first packet would be.
func judgeTuple(ev *engine.Evaluator, s *engine.Snapshot, t ruleset.Tuple) engine.Verdict {
	flow := packet.Flow{Src: t.Src, Dst: t.Dst, DstPort: t.DstPort, Proto: t.Proto, Form: packet.Complete}
	if t.Proto == packet.ProtoTCP {
		flow.TCPFlags = packet.FlagSYN
	}
	return ev.Judge(s, &flow, engine.Forward, true)
}
