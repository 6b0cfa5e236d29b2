package engine

import (
	"fmt"
	"testing"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// sizes are the clusters that benchmarks are run on: the cost must not depend on them.
var sizes = []struct{ policies, pods int }{
	{1, 100}, {1, 10_000}, {1, 100_000}, {100, 10_000}, {1000, 10_000}, {10_000, 100}, {10_000, 10_000}, {10_000, 100_000},
}

func eachSize(b *testing.B, run func(b *testing.B, policies, pods int)) {
	for _, s := range sizes {
		b.Run(fmt.Sprintf("policies=%d/pods=%d", s.policies, s.pods), func(b *testing.B) { run(b, s.policies, s.pods) })
	}
}

// BenchmarkJudgeWarm is a verdict between two pods of the node that are isolated in both directions.
func BenchmarkJudgeWarm(b *testing.B) {
	eachSize(b, func(b *testing.B, policies, pods int) {
		w, src, dst := big(b, policies, pods)
		f := packet.Flow{Src: src, Dst: dst, Proto: packet.ProtoTCP, TCPFlags: packet.FlagSYN, SrcPort: 1, DstPort: 80}
		f.Form = packet.Complete
		if v := w.judge(f, Forward, false); v.Action != Allow || v.Egress == nil || v.Ingress == nil {
			b.Fatalf("%+v", v)
		}
		b.ReportAllocs()
		for b.Loop() {
			w.ev.Judge(w.snap, &f, Forward, false)
		}
	})
}

// BenchmarkJudgeMixed goes round all pairs among the node's pods and many others.
func BenchmarkJudgeMixed(b *testing.B) {
	eachSize(b, func(b *testing.B, policies, pods int) {
		w, _, _ := big(b, policies, pods)
		var flows []packet.Flow
		for i := range 1024 {
			s, d := 1+(i*7919)%pods, 1+(i*31)%100
			f := flow(fmt.Sprintf("10.%d.%d.%d", s>>16, s>>8&255, s&255), fmt.Sprintf("10.0.0.%d", d), packet.ProtoTCP, 1, 80)
			flows = append(flows, f)
			w.judge(f, Forward, false)
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			w.ev.Judge(w.snap, &flows[i&1023], Forward, false)
			i++
		}
	})
}

// BenchmarkJudgeCold compiles both pairs for each verdict.
func BenchmarkJudgeCold(b *testing.B) {
	eachSize(b, func(b *testing.B, policies, pods int) {
		w, src, dst := big(b, policies, pods)
		f := packet.Flow{Src: src, Dst: dst, Proto: packet.ProtoTCP, SrcPort: 1, DstPort: 80, Form: packet.Complete}
		b.ReportAllocs()
		for b.Loop() {
			w.ev.pairs.Purge()
			w.ev.Judge(w.snap, &f, Forward, false)
		}
	})
}

// BenchmarkPolicyUpdate changes one policy of the node's namespace and commits.
func BenchmarkPolicyUpdate(b *testing.B) {
	eachSize(b, func(b *testing.B, policies, pods int) {
		w, _, _ := big(b, policies, pods)
		variants := [2]*rule.Policy{}
		for i := range variants {
			port := uint16(80 + i)
			variants[i] = w.netpol("ns0", "update", rules(rule.Rule{Ports: tcpPorts(port, port)}), nil, "app", "app1")
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			w.SetPolicy(variants[i&1])
			if w.commit() == nil {
				b.Fatal("nothing changed")
			}
			i++
		}
	})
}

// BenchmarkPodUpdate gives a remote pod other labels and commits.
func BenchmarkPodUpdate(b *testing.B) {
	eachSize(b, func(b *testing.B, policies, pods int) {
		w, _, _ := big(b, policies, pods)
		a := podEndpoint("other", "ns1", "p", labels("app", "a"), nil, "10.99.0.1")
		c := podEndpoint("other", "ns1", "p", labels("app", "c"), nil, "10.99.0.1")
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if i++; i&1 == 0 {
				w.add(a)
			} else {
				w.add(c)
			}
			if w.commit() == nil {
				b.Fatal("nothing changed")
			}
		}
	})
}
