// Package baseline holds what firstpacket is compared with: rules that need no userspace, and the plainest programs
// that serve an NFQUEUE.
package baseline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// tableName is the name of every baseline's table; each is alone in its namespace.
const tableName = "baseline"

// table is a table with one base chain, in the forward hook, that accepts established flows first.
type table struct {
	conn    *nftables.Conn
	table   *nftables.Table
	forward *nftables.Chain
}

func newTable(n *ns.Namespace) (*table, error) {
	c, err := nftables.New(nftables.WithNetNSFd(n.FD()), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", n.Name(), err)
	}
	t := &table{conn: c}
	t.table = c.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
	policy := nftables.ChainPolicyAccept
	t.forward = c.AddChain(&nftables.Chain{
		Name: "forward", Table: t.table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
	t.rule(t.forward,
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Xor: make([]byte, 4),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	)
	return t, nil
}

func (t *table) rule(c *nftables.Chain, exprs ...expr.Any) {
	t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: c, Exprs: exprs})
}

func (t *table) commit() error {
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return nil
}

// setSize is the capacity of the static set: that of firstpacket's own, so that both look up in a table of that size.
const setSize = ruleset.DefaultSetSize

// Static lets exactly the tuples pass: established flows are accepted, then new ones that are in a set, and no other.
// With reject, the others are refused by a reset instead of silence.
func Static(n *ns.Namespace, tuples []ruleset.Tuple, reject bool) error {
	t, err := newTable(n)
	if err != nil {
		return err
	}
	set := &nftables.Set{
		Table: t.table, Name: "allowed", Dynamic: true, Size: setSize,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr, nftables.TypeInetProto,
			nftables.TypeInetService),
	}
	var elements []nftables.SetElement
	for _, e := range tuples {
		src, dst := e.Src.As4(), e.Dst.As4()
		key := append(src[:], dst[:]...)
		key = append(key, e.Proto, 0, 0, 0)
		elements = append(elements, nftables.SetElement{Key: append(binary.BigEndian.AppendUint16(key, e.DstPort), 0, 0)})
	}
	if err := t.conn.AddSet(set, elements); err != nil {
		return fmt.Errorf("add the set of tuples: %w", err)
	}
	t.rule(t.forward,
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		sourceAddress(1), destinationAddress(unix.NFT_REG32_01),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG32_02},
		destinationPort(unix.NFT_REG32_03),
		&expr.Lookup{SourceRegister: 1, SetName: set.Name},
		&expr.Verdict{Kind: expr.VerdictAccept},
	)
	if reject {
		t.rule(t.forward,
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
		)
	}
	t.rule(t.forward, &expr.Verdict{Kind: expr.VerdictDrop})
	return t.commit()
}

func sourceAddress(register uint32) expr.Any {
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4, DestRegister: register}
}

func destinationAddress(register uint32) expr.Any {
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4, DestRegister: register}
}

func destinationPort(register uint32) expr.Any {
	return &expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: register}
}

// Chains are rules as agents of the iptables kind generate them: traffic to the pod's addresses goes through one chain
// for each of the policies that select it, each with a set of the addresses of its peers. The client is a peer of the
// last one alone. What no chain accepts is dropped.
func Chains(n *ns.Namespace, client, server []netip.Addr, policies int) error {
	t, err := newTable(n)
	if err != nil {
		return err
	}
	pods, err := t.addresses("pods", server)
	if err != nil {
		return err
	}
	pod := t.conn.AddChain(&nftables.Chain{Name: "pod", Table: t.table})
	t.rule(t.forward,
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		destinationAddress(1), &expr.Lookup{SourceRegister: 1, SetName: pods.Name},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: pod.Name},
	)
	for i := range policies {
		peers := []netip.Addr{netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})}
		if i == policies-1 {
			peers = client
		}
		set, err := t.addresses(fmt.Sprintf("peers-%d", i), peers)
		if err != nil {
			return err
		}
		chain := t.conn.AddChain(&nftables.Chain{Name: fmt.Sprintf("policy-%d", i), Table: t.table})
		t.rule(chain, sourceAddress(1), &expr.Lookup{SourceRegister: 1, SetName: set.Name},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			destinationPort(1),
			&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{0, 1}, ToData: []byte{255, 255}},
			&expr.Verdict{Kind: expr.VerdictAccept},
		)
		t.rule(pod, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name})
		if i%chunk == chunk-1 { // the socket's buffer holds so many
			if err := t.commit(); err != nil {
				return err
			}
		}
	}
	t.rule(pod, &expr.Verdict{Kind: expr.VerdictDrop})
	return t.commit()
}

const (
	// chunk is the number of policies in one transaction.
	chunk = 20
	// socketBuffer is for the messages of a transaction and the kernel's answers, in bytes.
	socketBuffer = 4 << 20
)

// addresses makes a set of addresses.
func (t *table) addresses(name string, list []netip.Addr) (*nftables.Set, error) {
	set := &nftables.Set{Table: t.table, Name: name, KeyType: nftables.TypeIPAddr}
	var elements []nftables.SetElement
	for _, a := range list {
		elements = append(elements, nftables.SetElement{Key: a.AsSlice()})
	}
	if err := t.conn.AddSet(set, elements); err != nil {
		return nil, fmt.Errorf("add the set %s: %w", name, err)
	}
	return set, nil
}

// Divert sends the first packet of each flow to the queue.
func Divert(n *ns.Namespace, queue uint16) error {
	features, err := ruleset.Probe(n.FD())
	if err != nil {
		return err
	}
	t, err := newTable(n)
	if err != nil {
		return err
	}
	if features.NativeQueue {
		t.rule(t.forward, &expr.Queue{Num: queue, Total: 1})
		return t.commit()
	}
	// struct xt_NFQ_info_v3 (linux/netfilter/xt_NFQUEUE.h): number, count, flags, padding.
	info := xt.Unknown(make([]byte, 8))
	binary.NativeEndian.PutUint16(info, queue)
	binary.NativeEndian.PutUint16(info[2:], 1)
	t.rule(t.forward, &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info})
	return t.commit()
}
