// Package expect says what the policies in a directory of manifests mean for a connection, by the engine that the
// agents enforce with, for the whole cluster at once.
package expect

import (
	"fmt"
	"net/netip"

	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/classify/source/manifests"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/state"
)

// pairs bounds the compiled pairs that are kept; a lab has fewer.
const pairs = 1 << 12

// Policy answers questions about one state of the manifests. It is not safe for concurrent use.
type Policy struct {
	snapshot  *engine.Snapshot
	evaluator *engine.Evaluator
}

// Load reads the directory once. Manifests that are not in order are an error: agents would go on with an older state
// of theirs, so there is no telling what to expect.
func Load(dir string) (*Policy, error) {
	objects, problems := manifests.LoadKinds(state.ManifestKinds(), dir)
	if err := problems.Err(); err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	changes, err := state.Of(objects)
	if err != nil {
		return nil, fmt.Errorf("understand manifests: %w", err)
	}
	snapshot, _ := state.New("").Apply(changes)
	return &Policy{snapshot: snapshot, evaluator: engine.NewEvaluator(pairs)}, nil
}

// Allows says whether a new connection comes to be. The destination is that of the pod, not of a Service.
func (p *Policy) Allows(from netip.Addr, to netip.AddrPort, proto uint8) bool {
	flow := packet.Flow{
		Src: from, Dst: to.Addr(), SrcPort: 40000, DstPort: to.Port(), Proto: proto, Form: packet.Complete,
	}
	if proto == packet.ProtoTCP {
		flow.TCPFlags = packet.FlagSYN
	}
	verdict := p.evaluator.Judge(p.snapshot, &flow, engine.Forward, true)
	if verdict.Src != nil && verdict.Src.Kind == identity.Node {
		// Only a node itself sends from its address, and its own pods must answer it.
		verdict = p.evaluator.Judge(p.snapshot, &flow, engine.Output, true)
	}
	return verdict.Action == engine.Allow
}
