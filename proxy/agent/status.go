package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/proxy/health"
	"github.com/firstpacket/firstpacket/proxy/queue"
	"github.com/firstpacket/firstpacket/proxy/warnings"
)

// Status is what /status answers. Fields are stable: tools wait on generation, applied and manifests.
type Status struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	// Kernel is the kernel's release, and Features say what the table makes use of.
	Kernel   string `json:"kernel"`
	Features string `json:"features"`
	// Started is when the agent began.
	Started time.Time `json:"started"`
	// DenyWith is how denied packets are refused, drop or reject; FailOpen, that packets pass which no agent is there to
	// judge; MarkMask has the bits of marks that are ours.
	DenyWith string `json:"denyWith"`
	FailOpen bool   `json:"failOpen,omitempty"`
	MarkMask string `json:"markMask"`
	// QueueLimit is how many packets wait in one queue at most.
	QueueLimit int `json:"queueLimit"`
	// Audit: nothing is enforced, and what would be is in the flow log.
	Audit bool `json:"audit,omitempty"`
	// Ready is empty when the agent enforces, else what it waits for.
	NotReady string `json:"notReady,omitempty"`
	// Generation is the number that verdicts carry: new flows are judged by it. Settled is the newest generation whose
	// change has also been carried through for what was admitted before: cached tuples and established flows. Settled is
	// the acknowledgement: nothing that it forbids passes from then on. Both numbers grow, not always by one.
	Generation uint32 `json:"generation"`
	Settled    uint32 `json:"settled"`
	// Applied has the resource version of each kind that is in force, since At.
	Applied   map[string]string `json:"applied"`
	AppliedAt time.Time         `json:"appliedAt"`
	// Manifests is the digest of the directory's content that is in force and settled, for the directory source.
	Manifests string `json:"manifests,omitempty"`
	Policies  int    `json:"policies"`
	// Dialects is how many of the policies each dialect has.
	Dialects map[string]int `json:"dialects,omitempty"`
	// Problems lists policies that could not be understood in full, and why. They fail closed.
	Problems map[string][]string `json:"problems,omitempty"`
	// Names is how many addresses the node's pods have learned under domain names, for pods that have learned any.
	Names    map[string]int `json:"names,omitempty"`
	Tuples   int            `json:"tuples"`
	Revoked  uint64         `json:"revokedFlows"`
	Restored uint64         `json:"restoredFlows"`
	// SettleSeconds is how long the last carrying through took, from the change being in force for new flows.
	SettleSeconds float64 `json:"settleSeconds"`
	// Reports tells of the writing of conditions and events; nil where the agent takes no part in it.
	Reports *ReportStatus `json:"reports,omitempty"`
	// Repairs is how often somebody else had changed the table in the kernel and it was written anew.
	Repairs uint64 `json:"repairs"`
	// Errors keep the agent from what it has to do, now; Warnings are what it has logged since it started, newest first.
	Errors   []string           `json:"errors,omitempty"`
	Warnings []warnings.Warning `json:"warnings,omitempty"`
	Sources  []SourceStatus     `json:"sources"`
}

// ReportStatus is about conditions and events of policies.
type ReportStatus struct {
	// Elected: this agent writes them, for all.
	Elected bool `json:"elected"`
	// Written is how many it has written.
	Written uint64 `json:"written"`
}

// SourceStatus is the health of one kind of objects.
type SourceStatus struct {
	Kind    string `json:"kind"`
	Objects int    `json:"objects"`
	// Failing is how many objects have a state that could not be understood; an older one is in force.
	Failing int `json:"failing,omitempty"`
	// Synced is false until all objects are known. Absent kinds are those that the cluster does not serve.
	Synced    bool      `json:"synced"`
	Absent    bool      `json:"absent,omitempty"`
	LastEvent time.Time `json:"lastEvent"`
	// Error is why the source cannot be followed now, since ErrorSince. What was known stays in force.
	Error      string    `json:"error,omitempty"`
	ErrorSince time.Time `json:"errorSince,omitzero"`
}

func (a *agent) endpoints() health.Config {
	registry := prometheus.NewRegistry()
	a.register(registry)
	return health.Config{
		Address: a.cfg.HTTPAddress, Ready: a.ready, Status: func() any { return a.status() },
		Metrics: registry, Profiling: a.cfg.Profiling,
		More: a.pages(),
	}
}

// errStarting is why an agent that has not installed its rules is not ready.
var (
	errStarting = errors.New("starting: the cluster's state has not been brought into force")
	errAdopting = errors.New("starting: flows that are older than the agent have not been judged")
)

// ready tells whether the agent enforces. Losing the API server does not make it unready: the last state stays in
// force, and taking the pod out of service would not help.
func (a *agent) ready() error {
	s := a.controller.status()
	if s.Snapshot == nil {
		return errStarting
	}
	if a.settler.status().Generation == 0 {
		return errAdopting
	}
	if s.Err != nil {
		return fmt.Errorf("the newest state is not in force: %w", s.Err)
	}
	return a.bridges.check(s.PodCIDRs)
}

func (a *agent) status() Status {
	applied, settled := a.controller.status(), a.settler.status()
	s := Status{
		Node: a.cfg.NodeName, Version: a.cfg.Version, Kernel: kernelRelease(), Features: a.rules.Features().String(),
		Started: a.started, DenyWith: a.cfg.DenyWith.String(), FailOpen: a.cfg.failOpen(), MarkMask: a.marks.String(),
		QueueLimit: queue.DefaultMaxLen, Audit: a.cfg.Audit,
		Generation: applied.Generation, Settled: settled.Generation,
		Applied: applied.Versions, AppliedAt: applied.At,
		Policies: applied.Policies, Dialects: map[string]int{}, Problems: applied.Problems, Names: applied.Names,
		Tuples:  a.learned.len(),
		Revoked: settled.Revoked, Restored: settled.Restored, SettleSeconds: settled.Took.Seconds(),
		Repairs: a.controller.repairs.Load(), Warnings: a.cfg.Warnings.List(),
	}
	for kind, n := range applied.Census {
		s.Dialects[kind.Dialect.String()] += n
	}
	if w := a.controller.reporter.Load(); w != nil {
		s.Reports = &ReportStatus{Elected: w.Elected(), Written: w.Written()}
	}
	if err := a.ready(); err != nil {
		s.NotReady = err.Error()
	}
	for _, err := range []error{applied.Err, settled.Err} {
		if err != nil {
			s.Errors = append(s.Errors, err.Error())
		}
	}
	// A digest says "all of this directory is in force", so it waits for the second half of a change too.
	// There is a source once a snapshot is in force, and none to be looked at before.
	if applied.Snapshot != nil && settled.Generation == applied.Generation {
		s.Manifests = a.source.digest(applied.Versions)
	}
	for _, h := range a.sourceHealth() {
		one := SourceStatus{
			Kind: h.Kind, Objects: h.Objects, Failing: h.Failing, Synced: h.Synced, Absent: h.Absent, LastEvent: h.LastEvent,
		}
		if h.Err != nil {
			one.Error, one.ErrorSince = h.Err.Error(), h.ErrSince
		}
		s.Sources = append(s.Sources, one)
	}
	return s
}

// kernelRelease is that of the running kernel, as uname -r prints it; empty if it does not tell.
func kernelRelease() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

func (a *agent) sourceHealth() []source.Health {
	if q := a.changes.Load(); q != nil {
		return q.Health()
	}
	return nil
}
