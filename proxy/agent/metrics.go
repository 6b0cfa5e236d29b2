package agent

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/firstpacket/firstpacket/proxy/metrics"
	"github.com/firstpacket/firstpacket/proxy/queue"
)

// register adds everything that /metrics shows.
func (a *agent) register(r *prometheus.Registry) {
	s := metrics.Sources{
		Version: a.cfg.Version, Features: a.rules.Features().String(),
		Queues: a.queueStats, KernelQueues: queue.ReadKernelStats, Counters: a.rules.Counters, State: a.measure,
		Watches: a.sourceHealth, Changes: &a.controller.changes, FlowLog: a.flowLog.Stats,
	}
	for _, j := range a.judges {
		s.Verdicts = append(s.Verdicts, j.counts)
	}
	a.registerNames(r)
	r.MustRegister(
		metrics.NewCollector(s),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "firstpacket_repairs_total",
			Help: "Times somebody else had changed the table and it was written anew.",
		}, func() float64 { return float64(a.controller.repairs.Load()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "firstpacket_table_watch_overruns_total",
			Help: "Times the kernel had no room for its notifications of changes to the table, which was then looked at.",
		}, func() float64 { return float64(a.controller.overruns.Load()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "firstpacket_shed_packets_total",
			Help: "Packets dropped unjudged because their source sent more than its share while a queue was crowded.",
		}, func() float64 {
			var n uint64
			for _, j := range a.judges {
				n += j.fair.shed.Load()
			}
			return float64(n)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "firstpacket_names_addresses",
			Help: "Addresses that this node's pods have learned under domain names.",
		}, func() float64 {
			n := 0
			for _, count := range a.controller.status().Names {
				n += count
			}
			return float64(n)
		}),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
}

// registerNames adds what is counted of the exchanges between pods and DNS servers.
func (a *agent) registerNames(r *prometheus.Registry) {
	s := &a.names.watcher.Stats
	for kind, n := range map[string]*atomic.Uint64{
		"query": &s.Queries, "answer": &s.Answers, "waited": &s.Waited, "late": &s.Late, "stranger": &s.Strangers,
		"unfollowed": &s.Unfollowed,
	} {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "firstpacket_names_messages_total",
			Help: "What pods with domain names for peers and DNS servers said: queries for addresses, answers that count, " +
				"of these those that waited for their addresses and those that could not wait any longer (late), answers " +
				"that nobody asked for (stranger), and TCP segments that could not be followed.",
			ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 { return float64(n.Load()) }))
	}
}

func (a *agent) queueStats() map[uint16]queue.Stats {
	queues := a.queues.Load()
	if queues == nil {
		return nil
	}
	stats := make(map[uint16]queue.Stats, len(*queues))
	for _, q := range *queues {
		stats[q.Number()] = q.Stats()
	}
	return stats
}

func (a *agent) measure() metrics.State {
	applied, settled := a.controller.status(), a.settler.status()
	s := metrics.State{
		Generation: applied.Generation, Settled: settled.Generation,
		Tuples: a.learned.len(), TuplesLimit: a.cfg.cacheSize(), TuplesLost: a.learned.lostCount(),
		Policies: applied.Census, PolicyProblems: len(applied.Problems), Addresses: applied.Addresses,
		Revoked: settled.Revoked, Restored: settled.Restored,
		Ready:   a.ready() == nil,
		Objects: map[string]int{}, Failing: map[string]int{}, Failures: map[string]uint64{},
	}
	for _, h := range a.sourceHealth() {
		s.Objects[h.Kind], s.Failing[h.Kind], s.Failures[h.Kind] = h.Objects, h.Failing, h.Failures
	}
	return s
}
