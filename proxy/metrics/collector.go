package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/rule"
	"github.com/firstpacket/firstpacket/policycache/state"
	"github.com/firstpacket/firstpacket/proxy/flowlog"
	"github.com/firstpacket/firstpacket/proxy/queue"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// Sources is what a scrape reads. Functions may be called at any time and by several scrapes at once.
type Sources struct {
	// Version and Features describe the agent and the kernel.
	Version, Features string
	// Verdicts has the counters of each queue thread.
	Verdicts []*Verdicts
	// Queues has the loop's counts of each queue, once there are any; KernelQueues the kernel's.
	Queues       func() map[uint16]queue.Stats
	KernelQueues func() ([]queue.KernelStats, error)
	// Counters reads the table's counters.
	Counters func() (ruleset.Counters, error)
	// State is the rest.
	State func() State
	// FlowLog is nil without a flow log.
	FlowLog func() flowlog.Stats
	// Watches is how the sources of each kind are doing; nil leaves the metrics of watches out.
	Watches func() []source.Health
	// Changes is how long changes take from the source to new flows obeying; nil leaves the metric out.
	Changes *Latency
}

// State is what the agent knows of itself when it is asked.
type State struct {
	Generation, Settled uint32
	Tuples, TuplesLimit int
	TuplesLost          uint64
	Policies            state.Census
	PolicyProblems      int
	// Addresses have an owner, a pod or a node.
	Addresses         int
	Revoked, Restored uint64
	Ready             bool
	// Objects and Failing are by kind.
	Objects, Failing map[string]int
	Failures         map[string]uint64
}

type collector struct {
	s    Sources
	desc map[string]*prometheus.Desc
}

// metrics are all there are. Help texts end up in dashboards; names follow the Prometheus conventions (base units,
// _total), and docs/operations.md explains the ones to watch.
var metrics = []struct {
	name, help string
	labels     []string
}{
	{"build_info", "Version of the agent and kernel features in use; always 1.", []string{"version", "features"}},
	{"ready", "1 if the agent enforces the newest state of its sources.", nil},

	{
		"verdicts_total", "Verdicts on packets, by the direction that denied, the reason and the tier that decided.",
		[]string{"verdict", "direction", "reason", "tier"},
	},
	{"verdict_seconds", "Time from the receipt of a queued packet until the kernel has acted on its verdict.", nil},

	{"queue_packets_total", "Packets received from the kernel's queues.", []string{"queue"}},
	{"queue_verdicts_total", "Verdicts handed back to the kernel, by what it is to do.", []string{"queue", "kind"}},
	{"queue_held_packets", "Packets that wait for the pod of an address to become known.", []string{"queue"}},
	{"queue_holds_total", "Packets that have had to wait so.", []string{"queue"}},
	{"queue_hold_expired_total", "Held packets that were judged because their time was over.", []string{"queue"}},
	{"queue_hold_full_total", "Packets that were judged at once because too many waited.", []string{"queue"}},
	{"queue_sleeps_total", "Times a queue's thread found nothing to do and slept.", []string{"queue"}},
	{
		"queue_errors_total", "Messages of a queue that could not be received, read or answered.",
		[]string{"queue", "error"},
	},
	{"queue_waiting_packets", "Packets in the kernel's queue.", []string{"queue"}},
	{
		"queue_dropped_packets_total", "Packets that the kernel dropped because the queue or its socket was full.",
		[]string{"queue", "at"},
	},

	{
		"kernel_packets_total", "Packets by what the table did: queued (asked userspace), admitted and cached (new flows), " +
			"refused, invalid, shed (dropped unasked, of a source that asks more than its share), unlearnt (verdicts that the " +
			"cache had no room for).", []string{"outcome"},
	},
	{"cached_tuples", "Tuples that the kernel admits without asking.", nil},
	{"cached_tuples_limit", "Tuples of one address family that the kernel has room for.", nil},
	{
		"cached_tuples_lost_total", "Tuples that the kernel learnt and userspace lost track of; the cache is emptied at " +
			"the next change.", nil,
	},

	{"generation", "Generation by which new flows are judged.", nil},
	{
		"settled_generation", "Newest generation that has been carried through for cached tuples and established flows.", nil,
	},
	{"change_seconds", "Time from a change being heard of until new flows obey it.", nil},
	{"revoked_flows_total", "Established flows that were cut because policy no longer allows them.", nil},
	{"restored_flows_total", "Revoked flows that policy allows again.", nil},

	{
		"policies", "Policies by dialect and state: enforced, audited (evaluated only), failing (not understood in full, " +
			"and fails closed).", []string{"dialect", "state"},
	},
	{"policies_with_problems", "Policies that could not be understood in full and fail closed.", nil},
	{"endpoints", "Addresses that are known to be a pod's or a node's.", nil},
	{"objects", "Objects of the cluster that are known.", []string{"kind"}},
	{
		"failing_objects", "Objects whose newest state could not be understood; the last good one is in force.",
		[]string{"kind"},
	},
	{"object_failures_total", "Times an object could not be understood.", []string{"kind"}},
	{
		"watch_up", "1 if the kind's last list or watch worked; 0 while the last known state stays in force.",
		[]string{"kind"},
	},
	{
		"watch_last_event_timestamp_seconds", "When the source was last heard of for the kind, in seconds since the epoch.",
		[]string{"kind"},
	},

	{"flow_log_lines_total", "Lines written to the denied-flow log.", nil},
	{"flow_log_lost_total", "Refused packets that no line of the log counts.", nil},
	{"flow_log_suppressed_lines_total", "Lines not written because of the limit on lines a second.", nil},
	{"flow_log_write_errors_total", "Writes of the log that failed.", nil},
}

const prefix = "firstpacket_"

// Names are the names of all metrics that a collector can give. Dashboards and alert rules are held to them.
func Names() []string {
	names := make([]string, len(metrics))
	for i, m := range metrics {
		names[i] = prefix + m.name
	}
	return names
}

// NewCollector makes a Prometheus collector over the sources.
func NewCollector(s Sources) prometheus.Collector {
	c := &collector{s: s, desc: make(map[string]*prometheus.Desc, len(metrics))}
	for _, m := range metrics {
		c.desc[m.name] = prometheus.NewDesc(prefix+m.name, m.help, m.labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.desc {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(name string, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.desc[name], prometheus.GaugeValue, v, labels...)
	}
	counter := func(name string, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.desc[name], prometheus.CounterValue, float64(v), labels...)
	}
	gauge("build_info", 1, c.s.Version, c.s.Features)
	c.verdicts(ch, counter)
	c.queues(gauge, counter)
	c.kernel(counter)
	c.state(gauge, counter)
	c.watches(gauge)
	if c.s.Changes != nil {
		count, sum, buckets := histogram([]*Latency{c.s.Changes})
		ch <- prometheus.MustNewConstHistogram(c.desc["change_seconds"], count, sum, buckets)
	}
	if c.s.FlowLog != nil {
		s := c.s.FlowLog()
		counter("flow_log_lines_total", s.Lines)
		counter("flow_log_lost_total", s.Lost)
		counter("flow_log_suppressed_lines_total", s.Suppressed)
		counter("flow_log_write_errors_total", s.WriteErrors)
	}
}

func (c *collector) verdicts(ch chan<- prometheus.Metric, counter func(string, uint64, ...string)) {
	parts := make([]*Latency, len(c.s.Verdicts))
	for i, v := range c.s.Verdicts {
		parts[i] = &v.Latency
	}
	count, sum, buckets := histogram(parts)
	ch <- prometheus.MustNewConstHistogram(c.desc["verdict_seconds"], count, sum, buckets)

	var held uint64
	for _, v := range c.s.Verdicts {
		held += v.Held.Load()
	}
	counter("verdicts_total", held, engine.Hold.String(), "", engine.AwaitingEndpoint.String(), "")
	for _, action := range []engine.Action{engine.Allow, engine.Deny} {
		for _, direction := range []engine.Direction{engine.NoDirection, engine.Ingress, engine.Egress} {
			for reason := range engine.Reasons {
				for tier := range maxTier {
					var n uint64
					for _, v := range c.s.Verdicts {
						n += v.byOutcome[action][direction][reason][tier].Load()
					}
					if n > 0 {
						counter("verdicts_total", n, action.String(), direction.String(), reason.String(), tierName(tier))
					}
				}
			}
		}
	}
}

func tierName(t rule.Tier) string {
	if t == 0 {
		return "" // no tier took part
	}
	return t.String()
}

func (c *collector) queues(gauge func(string, float64, ...string), counter func(string, uint64, ...string)) {
	for number, s := range c.s.Queues() {
		q := strconv.Itoa(int(number))
		counter("queue_packets_total", s.Packets, q)
		counter("queue_verdicts_total", s.Dropped, q, "drop")
		counter("queue_verdicts_total", s.Accepted, q, "accept")
		counter("queue_verdicts_total", s.Repeated, q, "repeat")
		counter("queue_verdicts_total", s.Requeued, q, "requeue")
		gauge("queue_held_packets", float64(s.HeldNow), q)
		counter("queue_holds_total", s.Held, q)
		counter("queue_hold_expired_total", s.Expired, q)
		counter("queue_hold_full_total", s.HoldFull, q)
		counter("queue_sleeps_total", s.Waits, q)
		counter("queue_errors_total", s.ReceiveErrors, q, "receive")
		counter("queue_errors_total", s.Overruns, q, "overrun")
		counter("queue_errors_total", s.SendErrors, q, "send")
		counter("queue_errors_total", s.Malformed, q, "malformed")
		counter("queue_errors_total", s.Gone, q, "gone")
	}
	kernel, err := c.s.KernelQueues()
	if err != nil {
		return // another scrape may do better; the loop's own counts are there
	}
	ours := c.s.Queues()
	for _, k := range kernel {
		if _, ok := ours[k.Number]; !ok {
			continue
		}
		q := strconv.Itoa(int(k.Number))
		gauge("queue_waiting_packets", float64(k.Waiting), q)
		counter("queue_dropped_packets_total", uint64(k.QueueDropped), q, "queue")
		counter("queue_dropped_packets_total", uint64(k.UserDropped), q, "socket")
	}
}

func (c *collector) kernel(counter func(string, uint64, ...string)) {
	n, err := c.s.Counters()
	if err != nil {
		return // no table yet
	}
	counter("kernel_packets_total", n.Queued, "queued")
	counter("kernel_packets_total", n.Admitted, "admitted")
	counter("kernel_packets_total", n.Cached, "cached")
	counter("kernel_packets_total", n.Refused, "refused")
	counter("kernel_packets_total", n.Invalid, "invalid")
	counter("kernel_packets_total", n.Shed, "shed")
	counter("kernel_packets_total", n.Unlearnt, "unlearnt")
}

func (c *collector) state(gauge func(string, float64, ...string), counter func(string, uint64, ...string)) {
	s := c.s.State()
	ready := 0.0
	if s.Ready {
		ready = 1
	}
	gauge("ready", ready)
	gauge("cached_tuples", float64(s.Tuples))
	gauge("cached_tuples_limit", float64(s.TuplesLimit))
	counter("cached_tuples_lost_total", s.TuplesLost)
	gauge("generation", float64(s.Generation))
	gauge("settled_generation", float64(s.Settled))
	for kind, n := range s.Policies {
		gauge("policies", float64(n), kind.Dialect.String(), string(kind.Standing))
	}
	gauge("endpoints", float64(s.Addresses))
	gauge("policies_with_problems", float64(s.PolicyProblems))
	counter("revoked_flows_total", s.Revoked)
	counter("restored_flows_total", s.Restored)
	for kind, n := range s.Objects {
		gauge("objects", float64(n), kind)
		gauge("failing_objects", float64(s.Failing[kind]), kind)
		counter("object_failures_total", s.Failures[kind], kind)
	}
}

func (c *collector) watches(gauge func(string, float64, ...string)) {
	if c.s.Watches == nil {
		return
	}
	for _, h := range c.s.Watches() {
		if h.Absent {
			continue // an optional kind that the cluster does not have: nothing to hear of
		}
		up := 0.0
		if h.Synced && h.Err == nil {
			up = 1
		}
		gauge("watch_up", up, h.Kind)
		if !h.LastEvent.IsZero() {
			gauge("watch_last_event_timestamp_seconds", float64(h.LastEvent.UnixMilli())/1e3, h.Kind)
		}
	}
}
