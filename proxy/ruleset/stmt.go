package ruleset

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// stmt is a piece of a rule: what nft calls it, and the kernel expressions that do it. Each stmt loads what it needs
// from register 0 on and leaves nothing behind for the next.
type stmt struct {
	text  string
	exprs []expr.Any
}

// rule is a line of a chain.
type rule struct {
	stmts   []stmt
	comment string
}

func (r rule) exprs() []expr.Any {
	var all []expr.Any
	for _, s := range r.stmts {
		all = append(all, s.exprs...)
	}
	return all
}

func (r rule) userData() []byte {
	if r.comment == "" {
		return nil
	}
	return userdata.AppendString(nil, userdata.TypeComment, r.comment)
}

// String prints the rule as nft would.
func (r rule) String() string {
	var b strings.Builder
	for _, s := range r.stmts {
		if s.text == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(s.text)
	}
	if r.comment != "" {
		fmt.Fprintf(&b, " comment %q", r.comment)
	}
	return b.String()
}

// do makes a rule; note adds the comment that a listing shows.
func do(stmts ...stmt) rule             { return rule{stmts: stmts} }
func (r rule) note(comment string) rule { r.comment = comment; return r }
func (f *family) do(stmts ...stmt) rule { return rule{stmts: append([]stmt{f.packets()}, stmts...)} }
func goTo(chain string) stmt            { return verdict("goto "+chain, expr.VerdictGoto, chain) }
func jump(chain string) stmt            { return verdict("jump "+chain, expr.VerdictJump, chain) }
func verdict(t string, k expr.VerdictKind, chain string) stmt {
	return stmt{t, []expr.Any{&expr.Verdict{Kind: k, Chain: chain}}}
}

var (
	accept = verdict("accept", expr.VerdictAccept, "")
	drop   = verdict("drop", expr.VerdictDrop, "")
	back   = verdict("return", expr.VerdictReturn, "")
)

// reg numbers a 4-byte register as the kernel prints it back: those that begin a 16-byte register carry its number
// (nft_dump_register; NFT_REG_1, NFT_REG32_00 in linux/netfilter/nf_tables.h).
func reg(word uint32) uint32 {
	if word%4 == 0 {
		return unix.NFT_REG_1 + word/4
	}
	return unix.NFT_REG32_00 + word
}

// field is a part of the packet, or about it, that a rule can look up.
type field struct {
	text string
	// words is how many 4-byte registers it takes.
	words uint32
	load  func(reg uint32) expr.Any
}

func payload(text string, base expr.PayloadBase, offset, size uint32) field {
	return field{text, (size + 3) / 4, func(r uint32) expr.Any {
		return &expr.Payload{DestRegister: r, Base: base, Offset: offset, Len: size}
	}}
}

func meta(text string, key expr.MetaKey) field {
	return field{text, 1, func(r uint32) expr.Any { return &expr.Meta{Key: key, Register: r} }}
}

func ct(text string, key expr.CtKey) field {
	return field{text, 1, func(r uint32) expr.Any { return &expr.Ct{Key: key, Register: r} }}
}

var (
	packetMark = meta("meta mark", expr.MetaKeyMARK)
	l4proto    = meta("meta l4proto", expr.MetaKeyL4PROTO)
	nfproto    = meta("meta nfproto", expr.MetaKeyNFPROTO)
	iif        = meta("iif", expr.MetaKeyIIF)
	ctMark     = ct("ct mark", expr.CtKeyMARK)
	ctState    = ct("ct state", expr.CtKeySTATE)
	ctDir      = ct("ct direction", expr.CtKeyDIRECTION)
	dport      = payload("th dport", expr.PayloadBaseTransportHeader, 2, 2)
	sport      = payload("th sport", expr.PayloadBaseTransportHeader, 0, 2)
	tcpFlags   = payload("tcp flags", expr.PayloadBaseTransportHeader, 13, 1)
	icmpv6Type = payload("icmpv6 type", expr.PayloadBaseTransportHeader, 0, 1)
	hopLimit   = payload("ip6 hoplimit", expr.PayloadBaseNetworkHeader, 7, 1)
	fragOff    = payload("ip frag-off", expr.PayloadBaseNetworkHeader, 6, 2)
	// sourceType is how the routing table sees the source address (nft_fib).
	sourceType = field{"fib saddr type", 1, func(r uint32) expr.Any {
		return &expr.Fib{Register: r, FlagSADDR: true, ResultADDRTYPE: true}
	}}
	fragHeader = field{"exthdr frag", 1, func(r uint32) expr.Any {
		return &expr.Exthdr{DestRegister: r, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT,
			Op: expr.ExthdrOpIpv6}
	}}
)

func (f *family) source() field {
	return payload(f.ip+" saddr", expr.PayloadBaseNetworkHeader, f.saddr, f.size)
}

func (f *family) destination() field {
	return payload(f.ip+" daddr", expr.PayloadBaseNetworkHeader, f.daddr, f.size)
}

// tuple is the key of the verdict cache.
func (f *family) tuple() []field {
	return []field{f.source(), f.destination(), l4proto, dport}
}

// packets limits a rule to the family. Listings leave it out where a header field of the family follows.
func (f *family) packets() stmt {
	return stmt{"", compare(nfproto, expr.CmpOpEq, []byte{f.nfproto})}
}

// only is packets for rules in which no header field follows.
func (f *family) only() stmt {
	s := f.packets()
	s.text = "meta nfproto ip" + map[*family]string{ipv4: "v4", ipv6: "v6"}[f]
	return s
}

func compare(f field, op expr.CmpOp, value []byte) []expr.Any {
	return []expr.Any{f.load(reg(0)), &expr.Cmp{Op: op, Register: reg(0), Data: value}}
}

// is matches a field's whole value.
func (f field) is(name string, value ...byte) stmt {
	return stmt{f.text + " " + name, compare(f, expr.CmpOpEq, value)}
}

// masked matches a field's bits; mask and value are in the byte order of the field.
func (f field) masked(text string, mask []byte, op expr.CmpOp, value []byte) stmt {
	return stmt{text, []expr.Any{f.load(reg(0)), bitwise(mask, make([]byte, len(mask))),
		&expr.Cmp{Op: op, Register: reg(0), Data: value}}}
}

func bitwise(mask, xor []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: uint32(len(mask)), Mask: mask, Xor: xor}
}

// host encodes a number as registers hold it that the kernel computes with.
func host(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// markIs matches the bits of a mark under the mask.
func markIs(f field, mask, value uint32) stmt {
	text := fmt.Sprintf("%s & 0x%08x == 0x%08x", f.text, mask, value)
	return f.masked(text, host(mask), expr.CmpOpEq, host(value))
}

// markSet matches when any bit of a mark is set under the mask.
func markSet(f field, mask uint32) stmt {
	return f.masked(fmt.Sprintf("%s & 0x%08x != 0x00000000", f.text, mask), host(mask), expr.CmpOpNeq, host(0))
}

// stateIs matches one bit of the conntrack state (expr.CtStateBit…).
func stateIs(name string, bit uint32) stmt {
	return ctState.masked("ct state "+name, host(bit), expr.CmpOpNeq, host(0))
}

// setCtMark replaces the bits of the conntrack mark under the mask. It ends the rule when the packet has no conntrack
// entry (nft_ct_get_eval).
func setCtMark(mask, value uint32) stmt {
	return stmt{fmt.Sprintf("ct mark set ct mark & 0x%08x | 0x%08x", ^mask, value), []expr.Any{
		ctMark.load(reg(0)), bitwise(host(^mask), host(value)),
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg(0), SourceRegister: true},
	}}
}

// clearPacketMark zeroes the bits of the packet mark under the mask.
func clearPacketMark(mask uint32) stmt {
	return stmt{fmt.Sprintf("meta mark set meta mark & 0x%08x", ^mask), []expr.Any{
		packetMark.load(reg(0)), bitwise(host(^mask), host(0)),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0), SourceRegister: true},
	}}
}

// markMap looks the packet mark under the mask up in a verdict map.
func markMap(mask uint32, set string) stmt {
	return stmt{fmt.Sprintf("meta mark & 0x%08x vmap @%s", mask, set), []expr.Any{
		packetMark.load(reg(0)), bitwise(host(mask), host(0)),
		&expr.Lookup{SourceRegister: reg(0), DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set},
	}}
}

// concat loads fields one after the other and returns their joint text.
func concat(fields []field) (string, []expr.Any) {
	var word uint32
	var texts []string
	var loads []expr.Any
	for _, f := range fields {
		texts = append(texts, f.text)
		loads = append(loads, f.load(reg(word)))
		word += f.words
	}
	return strings.Join(texts, " . "), loads
}

// in matches when the set holds the fields' values, notIn when it does not.
func in(set string, fields ...field) stmt    { return lookup(set, false, fields) }
func notIn(set string, fields ...field) stmt { return lookup(set, true, fields) }

func lookup(set string, invert bool, fields []field) stmt {
	text, exprs := concat(fields)
	if invert {
		text += " !="
	}
	return stmt{text + " @" + set, append(exprs, &expr.Lookup{SourceRegister: reg(0), SetName: set, Invert: invert})}
}

// learn puts the fields' values into a set. It ends the rule when the set is full (nft_dynset_eval).
func learn(set string, fields ...field) stmt {
	text, exprs := concat(fields)
	return stmt{fmt.Sprintf("add @%s { %s }", set, text),
		append(exprs, &expr.Dynset{SrcRegKey: reg(0), SetName: set, Operation: unix.NFT_DYNSET_OP_ADD})}
}

// over matches when more packets a second carry the fields' values than the rate, beyond a burst at once. The set keeps
// count of each value, so it ends the rule, as if there were no limit, when the set is full.
func over(set string, rate uint64, burst uint32, fields ...field) stmt {
	text, exprs := concat(fields)
	limit := limitOver(rate, burst)
	return stmt{fmt.Sprintf("update @%s { %s %s }", set, text, limit.text),
		append(exprs, &expr.Dynset{SrcRegKey: reg(0), SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE,
			Exprs: limit.exprs})}
}

func limitOver(rate uint64, burst uint32) stmt {
	return stmt{fmt.Sprintf("limit rate over %d/second burst %d packets", rate, burst), []expr.Any{&expr.Limit{
		Type: expr.LimitTypePkts, Rate: rate, Over: true, Unit: expr.LimitTimeSecond, Burst: burst}}}
}

// renew begins the time of the element anew that has the fields' values.
func renew(set string, fields ...field) stmt {
	text, exprs := concat(fields)
	return stmt{fmt.Sprintf("update @%s { %s }", set, text),
		append(exprs, &expr.Dynset{SrcRegKey: reg(0), SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE})}
}

// count adds the packet to a named counter.
func count(name string) stmt {
	return stmt{fmt.Sprintf("counter name %q", name),
		[]expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: name}}}
}

// Refusals that answer the sender.
var (
	rejectReset = stmt{"reject with tcp reset", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}}
	rejectAdmin = stmt{"reject with icmpx admin-prohibited", []expr.Any{
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED},
	}}
)

// queueNative sends packets to userspace with nftables' own expression. Of several queues, it takes the one of the
// processor that handles the packet, counted round and round: the thread that serves it can run right there.
func queueNative(first, total uint16, bypass bool) stmt {
	var flags expr.QueueFlag
	if bypass {
		flags |= expr.QueueFlagBypass
	}
	if total > 1 {
		flags |= expr.QueueFlagFanout
	}
	return stmt{"queue" + queueText(first, total, bypass),
		[]expr.Any{&expr.Queue{Num: first, Total: total, Flag: flags}}}
}

// queueXt does the same with the xtables target, for kernels built without CONFIG_NFT_QUEUE: struct xt_NFQ_info_v3 of
// linux/netfilter/xt_NFQUEUE.h, three numbers in host order, aligned to 8 bytes.
func queueXt(first, total uint16, bypass bool) stmt {
	var flags uint16
	if bypass {
		flags |= nfqFlagBypass
	}
	if total > 1 {
		flags |= nfqFlagFanout
	}
	info := make(xt.Unknown, 0, 8)
	for _, v := range []uint16{first, total, flags, 0} {
		info = binary.NativeEndian.AppendUint16(info, v)
	}
	return stmt{"xt target NFQUEUE" + queueText(first, total, bypass),
		[]expr.Any{&expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}}}
}

// Flags of linux/netfilter/xt_NFQUEUE.h.
const (
	nfqFlagBypass = 0x01 // NFQ_FLAG_BYPASS
	nfqFlagFanout = 0x02 // NFQ_FLAG_CPU_FANOUT
)

func queueText(first, total uint16, bypass bool) string {
	var flags []string
	to := strconv.Itoa(int(first))
	if bypass {
		flags = append(flags, "bypass")
	}
	if total > 1 {
		flags = append(flags, "fanout")
		to = fmt.Sprintf("%d-%d", first, first+total-1)
	}
	text := ""
	if len(flags) > 0 {
		text = " flags " + strings.Join(flags, ",")
	}
	return text + " to " + to
}
