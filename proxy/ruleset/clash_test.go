package ruleset

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

func TestCheckMask(t *testing.T) {
	set := func(load, store expr.Any, and, xor uint32) []expr.Any {
		return []expr.Any{load, bitwise(host(and), host(xor)), store}
	}
	packet, conntrack := packetMark.load(1), ctMark.load(1)
	setPacket := &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}
	setCt := &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}
	constant := func(v uint32) expr.Any { return &expr.Immediate{Register: 1, Data: host(v)} }
	target := func(name string, rev, size uint32, words ...uint32) []expr.Any {
		info := make(xt.Unknown, 0, size)
		for _, w := range words {
			info = binary.NativeEndian.AppendUint32(info, w)
		}
		info = append(info, make([]byte, int(size)-len(info))...)
		return []expr.Any{&expr.Target{Name: name, Rev: rev, Info: &info}}
	}
	for _, c := range []struct {
		what  string
		exprs []expr.Any
		want  string
	}{
		{"kube-proxy marks", set(packet, setPacket, ^uint32(0x4000), 0x4000), ""},
		{"packet bit of ours", set(packet, setPacket, ^uint32(0x01000000), 0x01000000),
			"chain c of table ip other writes bits 0x01000000 of the packet mark: "},
		{"packet bits cleared", set(packet, setPacket, 0x00ffffff, 0), "writes bits 0x3f000000 of the packet mark"},
		{"whole packet mark, our bits zero", []expr.Any{constant(0xff), setPacket}, ""},
		{"whole packet mark, a verdict", []expr.Any{constant(0x20000001), setPacket}, "bits 0x20000000 of the packet mark"},
		{"connmark restored", []expr.Any{conntrack, setPacket}, ""},
		{"ct bits of others", set(conntrack, setCt, ^uint32(0xff), 0x12), ""},
		{"whole ct mark", []expr.Any{constant(1), setCt}, "writes bits 0x3f000000 of the conntrack mark"},
		{"packet mark saved", []expr.Any{packet, setCt}, "writes bits 0x3f000000 of the conntrack mark"},
		{"MARK of others", target("MARK", 2, 8, 0x4000, 0x4000), ""},
		{"MARK whole", target("MARK", 2, 8, 0x12000000, ^uint32(0)), "bits 0x12000000 of the packet mark"},
		{"MARK ours", target("MARK", 2, 8, 0, 0x02000000), "bits 0x02000000 of the packet mark"},
		{"CONNMARK set", target("CONNMARK", 1, 16, 0x10000000, 0xf0000000, 0, connmarkSet),
			"bits 0x30000000 of the conntrack mark"},
		{"CONNMARK save of others", target("CONNMARK", 1, 16, 0, 0xff, 0xff, connmarkSave), ""},
		{"CONNMARK save", target("CONNMARK", 1, 16, 0, ^uint32(0), ^uint32(0), connmarkSave),
			"bits 0x3f000000 of the conntrack mark"},
		{"CONNMARK restore", target("CONNMARK", 1, 16, 0, ^uint32(0), ^uint32(0), connmarkRestore), ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			r := bare(t)
			if err := r.Install(isolated(true, true)); err != nil {
				t.Fatal(err)
			}
			if err := r.CheckMask(layoutOfMarks); err != nil {
				t.Fatalf("our own table: %v", err)
			}
			r.alter(t, func(conn *nftables.Conn) {
				table := conn.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyIPv4})
				// The targets of iptables want the chain of iptables-nft.
				ch := conn.AddChain(&nftables.Chain{Name: "c", Table: table, Type: nftables.ChainTypeFilter,
					Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle})
				conn.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: c.exprs})
			})
			err := r.CheckMask(layoutOfMarks)
			if c.want == "" {
				if err != nil {
					t.Errorf("%v, want no clash", err)
				}
				return
			}
			if !errors.Is(err, ErrMaskClash) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
