package agent

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"github.com/rs/zerolog"

	"github.com/firstpacket/firstpacket/proxy/flowlog"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
	"github.com/firstpacket/firstpacket/proxy/warnings"
)

// Config is what a user can choose. The zero value is not valid: NodeName and one source are required.
type Config struct {
	// NodeName is the name of the Node object that this agent enforces for.
	NodeName string

	// Manifests is a directory of manifests to take the cluster from; otherwise the API server is asked.
	Manifests string
	// Kubeconfig is the file that says how to reach the API server; empty means the in-cluster configuration.
	Kubeconfig string
	// RemoveTaint is the key of a taint to take off the node once the agent enforces; empty is none. It needs an API
	// server.
	RemoveTaint string
	// ReportPolicies takes part in the election of the agent that writes conditions and events of policies, by a Lease in
	// LeaseNamespace of LeaseDuration, in whole seconds. It needs an API server.
	ReportPolicies bool
	LeaseNamespace string
	LeaseDuration  time.Duration
	// PodEvents makes events on pods of this node whose connections are denied. It needs an API server.
	PodEvents bool
	// StartTimeout bounds how long the sources may take to deliver the cluster the first time.
	StartTimeout time.Duration

	// HTTPAddress is where health, status and metrics are served.
	HTTPAddress string
	// Profiling adds /debug/pprof there.
	Profiling bool
	// ExposePage serves the page, the denied flows and the traffic on every HTTPAddress, instead of on loopback addresses
	// and unix sockets only.
	ExposePage bool
	// FlowLog is the file of the denied-flow log; "-" is stdout, empty is none.
	FlowLog string
	// FlowLogRotation bounds what the file takes on disk.
	FlowLogRotation flowlog.Rotation
	// FlowSocket is a unix socket on which the log's lines are streamed to 'firstpacket flows'; empty is none.
	FlowSocket string

	// DenyWith says how a denied packet is refused.
	DenyWith ruleset.DenyWith
	// FailOpen lets packets pass that no agent is there to judge. The default is that they wait or drop.
	FailOpen bool
	// Audit has every policy evaluated and nothing enforced: no packet is refused, held or lost for want of a verdict,
	// so it includes FailOpen.
	Audit bool
	// Queues is the number of NFQUEUEs, and threads; 0 takes one per processor, at most four.
	Queues int
	// QueueNumber is the first NFQUEUE number. Agents on one node must have the same: see bank.go.
	QueueNumber uint16
	// DNSServers are servers that names are learned from, beside the cluster's own: node-local caches, for instance.
	DNSServers []netip.AddrPort
	// MarkMask are the bits of packet and conntrack marks that belong to firstpacket.
	MarkMask uint32
	// HoldTime is how long a packet from or to a pod not known yet waits for the watch to deliver that pod.
	HoldTime time.Duration
	// CacheSize is how many allowed tuples of one address family the kernel keeps, and how many denied ones.
	CacheSize int

	// WaitWhenReplaced keeps the process, idle, after another agent has taken over, until it is ended. What restarts
	// processes that end, as a kubelet does, would otherwise have this one take the node back.
	WaitWhenReplaced bool

	// Version is reported by /status and as a metric.
	Version string
	// Log takes what operators should know; never one line per packet.
	Log zerolog.Logger
	// Warnings is what /status tells of the log's warnings: a second writer of Log. It may be nil.
	Warnings *warnings.Recorder
}

// Defaults of the agent's flags.
const (
	DefaultHTTPAddress  = "127.0.0.1:9099"
	DefaultQueueNumber  = 2016
	DefaultStartTimeout = time.Minute
	DefaultHoldTime     = time.Second
	DefaultCacheSize    = ruleset.DefaultSetSize
)

const (
	leastCacheSize = 64
	mostCacheSize  = 1 << 22
)

// validate returns one sentence on the first thing that cannot work.
func (c *Config) validate() (mark.Layout, error) {
	layout, err := mark.New(c.MarkMask)
	if err != nil {
		return layout, err
	}
	switch {
	case c.NodeName == "":
		return layout, errors.New("no node name: give --node-name, in a DaemonSet from the downward API's spec.nodeName")
	case c.Manifests != "" && c.Kubeconfig != "":
		return layout, errors.New("--manifests and --kubeconfig exclude each other: choose one source of the cluster")
	case c.Manifests != "" && c.RemoveTaint != "":
		return layout, errors.New("--remove-taint needs an API server: leave --manifests out")
	case c.Manifests != "" && (c.ReportPolicies || c.PodEvents):
		return layout, errors.New("--report-policies and --pod-events need an API server: leave --manifests out")
	case c.ReportPolicies && c.LeaseNamespace == "":
		return layout, errors.New("no namespace for the lease: give --lease-namespace, in a DaemonSet from the downward " +
			"API's metadata.namespace")
	case c.ReportPolicies && c.LeaseDuration < time.Second:
		return layout, fmt.Errorf("--lease-duration %s is out of range: use 1s or more", c.LeaseDuration)
	case c.Queues < 0 || c.Queues > maxQueues:
		return layout, fmt.Errorf("--queues %d is out of range: use 1 to %d, or 0 for one per processor",
			c.Queues, maxQueues)
	case int(c.QueueNumber)+bankStride+c.queues()+furtherQueues > 1<<16:
		return layout, fmt.Errorf("--queue-number %d ends beyond 65535: choose one up to %d",
			c.QueueNumber, 1<<16-bankStride-c.queues()-furtherQueues)
	case c.CacheSize != 0 && (c.CacheSize < leastCacheSize || c.CacheSize > mostCacheSize):
		return layout, fmt.Errorf("--cache-size %d is out of range: use %d to %d", c.CacheSize, leastCacheSize, mostCacheSize)
	case c.HoldTime <= 0 || c.HoldTime > time.Minute:
		return layout, fmt.Errorf("--hold-time %s is out of range: use up to 1m", c.HoldTime)
	}
	return layout, nil
}

// failOpen tells whether packets pass that no agent judges.
func (c *Config) failOpen() bool { return c.FailOpen || c.Audit }

// cacheSize resolves the default.
func (c *Config) cacheSize() int { return cmp.Or(c.CacheSize, DefaultCacheSize) }

// learnedSize is how far the kernel's sets may fill before the oldest tuples leave: the kernel learns a little ahead of
// userspace.
func (c *Config) learnedSize() int { return c.cacheSize() * 9 / 10 }

// queues resolves the automatic queue count. More threads than processors only take turns.
func (c *Config) queues() int {
	if c.Queues > 0 {
		return c.Queues
	}
	return min(runtime.NumCPU(), 4)
}

// judges is the number of threads that judge: one for each of the queues, and one for whole packets, see wholeQueue.
func (c *Config) judges() int { return c.queues() + 1 }
