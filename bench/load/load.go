// Package load makes the traffic of the benchmarks, and receives it.
//
// Each end is a process of its own inside the namespace of its pod (Worker), so that neither its threads nor its
// garbage collector meet those of what is measured. A process does what it is told in a line of JSON on its standard
// input (a Job), as fast as it can with plain system calls on threads of its own, and answers with a line (a Result).
//
// Connections end with a reset, so that no TIME_WAIT limits their number, and every connection can be of a tuple that
// none had before: the job counts through source addresses, destination addresses and ports.
package load

import (
	"net/netip"
	"time"
)

// Kinds of jobs.
const (
	// Connect opens TCP connections one after the other, on each client.
	Connect = "connect"
	// Fire opens connections without waiting for an answer.
	Fire = "fire"
	// Flood sends SYNs to ports at random, from the first of the sources to all targets: made beforehand and by the batch,
	// so that there are more of them than connections could be opened.
	Flood = "flood"
	// Request sends UDP datagrams of new flows, Parallel at once on one socket, and waits for the answers.
	Request = "request"
	// Stream sends as much as goes through TCP connections, one for each client. They stay for the next Stream, until a
	// HangUp ends them.
	Stream = "stream"
	HangUp = "hang up"
	// Packets sends small datagrams of established UDP flows, one for each client.
	Packets = "packets"
	// Flip opens TCP connections until one has the outcome Want, and tells when.
	Flip = "flip"

	// Reset makes a server forget what it counted; Count tells it, once Limit connections or requests are there, or do
	// not come.
	Reset = "reset"
	Count = "count"
)

// Outcome of a connection.
type Outcome string

// Outcomes.
const (
	Accepted Outcome = "accepted"
	Refused  Outcome = "refused"
	TimedOut Outcome = "timed out"
)

// Job is what a worker is asked for.
type Job struct {
	Kind string `json:"kind"`
	// Clients is the number of threads.
	Clients int `json:"clients,omitempty"`
	// The job ends after Duration, or when the clients have begun Limit connections or flows; zero is no limit.
	Duration time.Duration `json:"duration,omitempty"`
	Limit    int           `json:"limit,omitempty"`
	// Rate bounds the connections each second, of all clients together; zero is no bound.
	Rate   int    `json:"rate,omitempty"`
	Tuples Tuples `json:"tuples,omitzero"`
	// First is the number of the first tuple.
	First    int     `json:"first,omitempty"`
	Parallel int     `json:"parallel,omitempty"`
	Want     Outcome `json:"want,omitempty"`
}

// Tuples are destinations, and the sources to reach them from. Ports vary fastest, then targets, then sources.
type Tuples struct {
	// Sources to bind to; none lets the kernel choose.
	Sources []netip.Addr `json:"sources,omitempty"`
	Targets []netip.Addr `json:"targets,omitempty"`
	// Port is the first of Ports ports.
	Port  uint16 `json:"port,omitempty"`
	Ports int    `json:"ports,omitempty"`
}

// Count is the number of different tuples.
func (t *Tuples) Count() int { return t.Ports * len(t.Targets) * max(1, len(t.Sources)) }

// At is the tuple with number i, counted round and round. The source is not valid if the kernel shall choose.
func (t *Tuples) At(i int) (source netip.Addr, target netip.AddrPort) {
	port := t.Port + uint16(i%t.Ports)
	i /= t.Ports
	target = netip.AddrPortFrom(t.Targets[i%len(t.Targets)], port)
	if len(t.Sources) > 0 {
		source = t.Sources[i/len(t.Targets)%len(t.Sources)]
	}
	return source, target
}

// Result is what became of a job.
type Result struct {
	// Begun connections or flows ended in one of the outcomes.
	Begun int `json:"begun,omitempty"`
	// Numbers were handed out, from First on; a client that found the time over leaves out its last one.
	Numbers  int `json:"numbers,omitempty"`
	Accepted int `json:"accepted,omitempty"`
	Refused  int `json:"refused,omitempty"`
	TimedOut int `json:"timedOut,omitempty"`
	// Overtaken, for Count, are resets that came before the last packet of their handshake. That happens when the one is
	// sent on another processor than the other: the client had the connection, and the server's kernel forgot it, or had
	// just accepted it after all.
	Overtaken int `json:"overtaken,omitempty"`
	// Bytes and Packets were sent, for Stream and Packets; received, for Count.
	Bytes   uint64 `json:"bytes,omitempty"`
	Packets uint64 `json:"packets,omitempty"`
	// Elapsed is from the start of the first client to the end of the last; of Stream and Packets, without the time to
	// connect; of Stream, until all is acknowledged.
	Elapsed time.Duration `json:"elapsed,omitempty"`
	Latency Histogram     `json:"latency,omitzero"`
	// At is when the connection of a Flip ended, in nanoseconds of CLOCK_MONOTONIC, which all processes share.
	At    int64  `json:"at,omitempty"`
	Error string `json:"error,omitempty"`
}

// Rate is the number of outcomes a second.
func (r *Result) Rate() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Begun) / r.Elapsed.Seconds()
}
