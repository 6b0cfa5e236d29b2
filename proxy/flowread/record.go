// Package flowread reads the denied-flow log back: from files, as they grow and are rotated, and from streams; picks
// lines and prints them.
package flowread

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Record is one line of the log. proxy/flowlog writes it.
type Record struct {
	// Time is that of the newest packet that the line counts.
	Time time.Time `json:"time"`
	Node string    `json:"node"`
	// Verdict, Direction and Reason are the engine's words.
	Verdict   string `json:"verdict"`
	Direction string `json:"direction"`
	Reason    string `json:"reason"`
	// Proto is tcp, udp, sctp, icmp, icmpv6, or the protocol's number.
	Proto string `json:"proto"`
	Src   Side   `json:"src"`
	Dst   Side   `json:"dst"`
	// Policies are those that decided, or that isolate the pod, as Dialect/namespace/name.
	Policies []string `json:"policies"`
	// Count is the number of packets.
	Count uint64 `json:"count"`
}

// Side is the source or the destination.
type Side struct {
	IP   netip.Addr `json:"ip"`
	Port uint16     `json:"port"`
	// Namespace and Pod are empty for what is no pod.
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
}

// Parse reads a line.
func Parse(line []byte) (*Record, error) {
	r := new(Record)
	if err := json.Unmarshal(line, r); err != nil {
		return nil, err
	}
	if r.Time.IsZero() || r.Verdict == "" {
		return nil, errors.New("no line of a flow log")
	}
	return r, nil
}

// Filter picks records. Empty fields pick all.
type Filter struct {
	// Verdict is deny, for instance.
	Verdict string
	// Pod is namespace/name of either side.
	Pod string
	// Namespace is that of either side.
	Namespace string
	// Policy is namespace/name, the name alone of a cluster-wide policy, or the whole name with the dialect.
	Policy string
	// Since drops what is older.
	Since time.Time
}

// Validate returns an error that says how a field that cannot pick anything should be written.
func (f *Filter) Validate() error {
	if f.Pod != "" {
		if ns, name, ok := strings.Cut(f.Pod, "/"); !ok || ns == "" || name == "" || strings.Contains(name, "/") {
			return fmt.Errorf("pod %q: write namespace/name", f.Pod)
		}
	}
	return nil
}

// Matches tells whether the filter picks the record.
func (f *Filter) Matches(r *Record) bool {
	either := func(ok func(*Side) bool) bool { return ok(&r.Src) || ok(&r.Dst) }
	switch {
	case f.Verdict != "" && r.Verdict != f.Verdict,
		f.Pod != "" && !either(func(s *Side) bool { return s.Namespace+"/"+s.Pod == f.Pod }),
		f.Namespace != "" && !either(func(s *Side) bool { return s.Namespace == f.Namespace }),
		f.Policy != "" && !slices.ContainsFunc(r.Policies, f.names),
		r.Time.Before(f.Since):
		return false
	}
	return true
}

// names tells whether the filter's policy is the one of this whole name.
func (f *Filter) names(policy string) bool {
	_, name, _ := strings.Cut(policy, "/") // the dialect has no slash
	return policy == f.Policy || name == f.Policy
}
