package flowlog

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"github.com/rs/zerolog"

	"github.com/firstpacket/firstpacket/classify/packet"
)

// writer formats lines and hands them to the output, one Write each.
type writer struct {
	out  io.Writer
	tee  func([]byte) // may be nil
	node string
	buf  bytes.Buffer
	log  zerolog.Logger
	torn bool // the last write left part of a line behind
}

func newWriter(out io.Writer, tee func([]byte), node string) *writer {
	w := &writer{out: out, tee: tee, node: node}
	w.log = zerolog.New(&w.buf) // in memory first: zerolog has no way to return a write's error
	return w
}

// line writes the line of what the aggregate has gathered.
func (w *writer) line(a *aggregate) error {
	w.buf.Reset()
	if w.torn {
		w.buf.WriteByte('\n') // readers lose the torn line, not this one
	}
	k := &a.key
	policies := a.policies
	if policies == nil {
		policies = []string{}
	}
	e := w.log.Log()
	e.Str("time", time.Unix(0, a.last).UTC().Format(time.RFC3339Nano)).
		Str("node", w.node).
		Str("verdict", k.verdict).
		Str("direction", k.direction).
		Str("reason", k.reason).
		Str("proto", ProtoName(k.proto)).
		Dict("src", side(e, k.src, a.srcPort, k.srcOwner)).
		Dict("dst", side(e, k.dst, k.dstPort, k.dstOwner)).
		Strs("policies", policies).
		Uint64("count", a.count).
		Send()
	n, err := w.out.Write(w.buf.Bytes())
	if err == nil && n < w.buf.Len() {
		err = io.ErrShortWrite
	}
	if n > 0 {
		w.torn = err != nil
	}
	if err == nil && w.tee != nil {
		w.tee(bytes.TrimPrefix(w.buf.Bytes(), []byte("\n")))
	}
	return err
}

func side(e *zerolog.Event, addr netip.Addr, port uint16, o owner) *zerolog.Event {
	return e.CreateDict().
		Str("ip", addr.String()).
		Uint16("port", port).
		Str("namespace", o.namespace).
		Str("pod", o.pod)
}

// ProtoName gives a protocol the names that people use in policies, and the IANA number for the rest.
func ProtoName(proto uint8) string {
	switch proto {
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	case packet.ProtoSCTP:
		return "sctp"
	case packet.ProtoICMP:
		return "icmp"
	case packet.ProtoICMPv6:
		return "icmpv6"
	}
	return strconv.Itoa(int(proto))
}

func name(s fmt.Stringer) string {
	if s == nil {
		return ""
	}
	return s.String()
}
