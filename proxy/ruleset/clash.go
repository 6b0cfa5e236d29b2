package ruleset

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/proxy/mark"
)

// MaskClashError names a rule that writes bits of the mask. It unwraps to ErrMaskClash.
type MaskClashError struct {
	// Table and Chain are where the rule is, Table with its family: "ip filter".
	Table, Chain string
	// Mark is "packet mark" or "conntrack mark", Bits are those in question.
	Mark string
	Bits uint32
}

// Error is one sentence that says where the rule is and what to do.
func (e *MaskClashError) Error() string {
	return fmt.Sprintf("chain %s of table %s writes bits 0x%08x of the %s: %v", e.Chain, e.Table, e.Bits, e.Mark,
		ErrMaskClash)
}

// Unwrap returns ErrMaskClash.
func (e *MaskClashError) Unwrap() error { return ErrMaskClash }

// CheckMask looks through the rules of all other tables in the network namespace, those of iptables-nft included, for
// one that writes bits of the mask; a *MaskClashError tells of the first. Writes that cannot harm are none: a whole
// packet mark with zeroes in our bits, and the conntrack mark copied into it, since no conntrack mark is a verdict.
//
// It cannot see the rules of iptables-legacy, of tc and of eBPF programs, nor marks that programs set on their sockets.
// Rules that the netlink library cannot read are passed over.
func (r *Ruleset) CheckMask(m mark.Layout) error {
	c, err := connect(r.cfg.NetNS)
	if err != nil {
		return fmt.Errorf("look for clashing marks: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("look for clashing marks: %w", explain(err))
	}
	for _, ch := range chains {
		if ch.Table.Name == r.layout.table.Name && ch.Table.Family == r.layout.table.Family {
			continue
		}
		// A fresh connection for each chain: what is left on one after a failure must not be read as the next answer.
		c, err := connect(r.cfg.NetNS)
		if err != nil {
			return fmt.Errorf("look for clashing marks: %w", err)
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			continue
		}
		for _, rule := range rules {
			if w := clash(rule.Exprs, m.Mask()); w != nil {
				w.Table, w.Chain = familyName(ch.Table.Family)+" "+ch.Table.Name, ch.Name
				return w
			}
		}
	}
	return nil
}

// origin is where a register's value came from, as far as marks are concerned.
type origin struct {
	kind originKind
	// The value is (the mark & mask) ^ xor; for constants xor alone.
	mask, xor uint32
}

type originKind uint8

const (
	unknown originKind = iota
	constant
	fromPacketMark
	fromCtMark
)

// clash follows the registers through a rule and returns the first write of bits under the mask.
func clash(exprs []expr.Any, mask uint32) *MaskClashError {
	regs := map[uint32]origin{}
	for _, e := range exprs {
		var bits uint32
		written := "packet mark"
		switch e := e.(type) {
		case *expr.Immediate:
			if len(e.Data) == 4 {
				regs[e.Register] = origin{kind: constant, xor: binaryutil.NativeEndian.Uint32(e.Data)}
			}
		case *expr.Bitwise:
			o := regs[e.SourceRegister]
			if o.kind != unknown && len(e.Mask) == 4 && len(e.Xor) == 4 {
				and, xor := binaryutil.NativeEndian.Uint32(e.Mask), binaryutil.NativeEndian.Uint32(e.Xor)
				o.mask, o.xor = o.mask&and, o.xor&and^xor
			} else {
				o = origin{}
			}
			regs[e.DestRegister] = o
		case *expr.Meta:
			switch {
			case e.Key == expr.MetaKeyMARK && e.SourceRegister:
				bits = packetBits(regs[e.Register])
			case e.Key == expr.MetaKeyMARK:
				regs[e.Register] = origin{kind: fromPacketMark, mask: ^uint32(0)}
			case !e.SourceRegister:
				delete(regs, e.Register)
			}
		case *expr.Ct:
			switch {
			case e.Key == expr.CtKeyMARK && (e.SourceRegister || e.Register == 0):
				// The library loses the register of writes; it is the one that rules use.
				bits, written = ctBits(regs[unix.NFT_REG_1]), "conntrack mark"
			case e.Key == expr.CtKeyMARK:
				regs[e.Register] = origin{kind: fromCtMark, mask: ^uint32(0)}
			default:
				delete(regs, e.Register)
			}
		case *expr.Lookup:
			if e.IsDestRegSet {
				delete(regs, e.DestRegister)
			}
		case *expr.Target:
			bits, written = targetBits(e)
		}
		if bits &= mask; bits != 0 {
			return &MaskClashError{Mark: written, Bits: bits}
		}
	}
	return nil
}

// packetBits are the bits of the packet mark that a value may put where none or others were.
func packetBits(o origin) uint32 {
	switch o.kind {
	case constant:
		return o.xor
	case fromPacketMark:
		return ^o.mask | o.xor
	case fromCtMark:
		return o.xor
	}
	return ^uint32(0)
}

// ctBits are the bits of the conntrack mark that a value changes.
func ctBits(o origin) uint32 {
	if o.kind == fromCtMark {
		return ^o.mask | o.xor
	}
	return ^uint32(0)
}

// Modes of struct xt_connmark_tginfo1, linux/netfilter/xt_connmark.h.
const (
	connmarkSet = iota
	connmarkSave
	connmarkRestore
)

// targetBits reads the targets of iptables that write marks: struct xt_mark_tginfo2 and xt_connmark_tginfo1 (revision 2
// only appends to it), numbers in host order.
func targetBits(t *expr.Target) (bits uint32, written string) {
	info, ok := t.Info.(*xt.Unknown)
	if !ok {
		return 0, ""
	}
	word := func(i int) uint32 { return binaryutil.NativeEndian.Uint32((*info)[4*i:]) }
	switch {
	case t.Name == "MARK" && t.Rev == 2 && len(*info) >= 8:
		value, mask := word(0), word(1)
		if mask == ^uint32(0) {
			return value, "packet mark"
		}
		return value | mask, "packet mark"
	case t.Name == "CONNMARK" && t.Rev >= 1 && len(*info) >= 13:
		value, ctMask, packetMask := word(0), word(1), word(2)
		switch (*info)[12] {
		case connmarkSet:
			return value | ctMask, "conntrack mark"
		case connmarkSave:
			return ctMask | packetMask, "conntrack mark"
		case connmarkRestore:
			return 0, ""
		}
	}
	return 0, ""
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return fmt.Sprintf("family %d", f)
}
