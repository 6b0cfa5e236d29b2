package ruleset

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of what exists once, for both families.
const (
	setVerdicts  = "verdicts"
	setWithPorts = "with_ports"
	setNeighbour = "neighbour_discovery"
	setOwner     = "owner"
	setTold      = "told"

	chainForward = "forward"
	chainInput   = "input"
	chainOutput  = "output"
	chainDivert  = "divert"
	chainJudge   = "judge"
	chainInvalid = "invalid"
	chainAdmit   = "admit"
	chainCommit  = "commit"
	chainDeny    = "deny"
	chainMarked  = "marked"
	chainVerdict = "verdict"
	chainRevoked = "revoked"
	chainRefuse  = "refuse"
	chainQueue   = "queue"
	chainFollow  = "follow"
	chainNames   = "names"

	counterAdmitted = "admitted"
	counterCached   = "cached"
	counterRefused  = "refused"
	counterInvalid  = "invalid"
	counterQueued   = "queued"
	counterShed     = "shed"
	counterUnlearnt = "unlearnt"
	counterFollowed = "followed"
)

// loIndex is the index of lo in every network namespace (LOOPBACK_IFINDEX, net/net_namespace.h).
const loIndex = 1

// layout is everything of the table that does not change while an agent runs.
type layout struct {
	table    *nftables.Table
	sets     []*nftables.Set
	counters []string
	chains   []chain
	// constants are the sets whose content belongs to the rules.
	constants elements
}

type chain struct {
	// spec has a hook for base chains.
	spec  *nftables.Chain
	rules []rule
}

func newLayout(cfg Config, features Features) *layout {
	l := &layout{
		table: &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet},
		counters: []string{counterAdmitted, counterCached, counterInvalid, counterQueued, counterRefused, counterShed,
			counterUnlearnt, counterFollowed},
		constants: elements{},
	}
	l.addSets(cfg, features)
	l.addBaseChains(cfg)
	l.addMarked(cfg)
	l.addDivert()
	for _, f := range families {
		l.addJudge(f, cfg.Audit)
		l.addInvalid(f, cfg.Audit)
	}
	l.addAdmit(cfg)
	l.addCommit(cfg)
	l.addRefuse(cfg)
	l.addQueue(cfg, features)
	l.addNames(cfg, features)
	return l
}

func (l *layout) addSets(cfg Config, features Features) {
	add := func(s nftables.Set, comment string) {
		s.Table, s.Comment = l.table, comment
		l.sets = append(l.sets, &s)
	}
	// Both pairs of elements fit while a transaction replaces one by the other.
	add(nftables.Set{Name: setVerdicts, KeyType: nftables.TypeMark, KeyByteOrder: binaryutil.NativeEndian,
		IsMap: true, DataType: nftables.TypeVerdict, Size: 4}, "marks of the generation in force")
	add(nftables.Set{Name: setWithPorts, KeyType: nftables.TypeInetProto}, "protocols whose tuples are cached")
	for _, p := range protosWithPorts {
		l.constants.add(setWithPorts, []byte{p})
	}
	add(nftables.Set{Name: setNeighbour, KeyType: nftables.TypeICMP6Type}, "RFC 4861 without redirects")
	for t := byte(133); t <= 136; t++ { // router and neighbour solicitation and advertisement
		l.constants.add(setNeighbour, []byte{t})
	}
	add(nftables.Set{Name: setOwner, KeyType: nftables.TypeMark, KeyByteOrder: binaryutil.NativeEndian},
		"the agent whose transactions hold")
	add(nftables.Set{Name: setTold, KeyType: toldType}, "what pods were told by DNS: pod, address, sign, end in uptime")
	for _, f := range families {
		pair := nftables.MustConcatSetType(f.addrType, f.addrType)
		tuple := nftables.MustConcatSetType(f.addrType, f.addrType, nftables.TypeInetProto, nftables.TypeInetService)
		add(nftables.Set{Name: f.set(kindIngress), KeyType: f.addrType}, "local pods isolated for ingress")
		add(nftables.Set{Name: f.set(kindEgress), KeyType: f.addrType}, "local pods isolated for egress")
		add(nftables.Set{Name: f.set(kindIngressAudit), KeyType: f.addrType}, "those whose ingress policies only audit")
		add(nftables.Set{Name: f.set(kindEgressAudit), KeyType: f.addrType}, "those whose egress policies only audit")
		add(nftables.Set{Name: f.set(kindNames), KeyType: f.addrType}, "local pods with names for egress peers")
		add(nftables.Set{Name: f.set(kindResolvers), KeyType: nftables.MustConcatSetType(f.addrType,
			nftables.TypeInetProto, nftables.TypeInetService)}, "DNS servers that names are learned from")
		add(nftables.Set{Name: f.set(kindPods), KeyType: f.addrType, Interval: true}, "pod CIDRs of this node")
		add(nftables.Set{Name: f.set(kindKnown), KeyType: f.addrType}, "known addresses, pods or not")
		add(nftables.Set{Name: f.set(kindSelf), KeyType: pair}, "every local pod with itself")
		add(nftables.Set{Name: f.set(kindAllowed), KeyType: tuple, Dynamic: true, Size: cfg.AllowedSize},
			"tuples that need no question")
		add(nftables.Set{Name: f.set(kindDenied), KeyType: tuple, Dynamic: true, Size: cfg.DeniedSize,
			HasTimeout: true, Timeout: cfg.DeniedTimeout}, "tuples refused a moment ago")
		if !features.Limit {
			continue
		}
		source := nftables.MustConcatSetType(nftables.TypeIFIndex, f.addrType)
		add(nftables.Set{Name: f.set(kindNoisy), KeyType: source, Dynamic: true, Size: noisySources,
			HasTimeout: true, Timeout: noisyTime}, "who asks more than its share")
		add(nftables.Set{Name: f.set(kindShares), KeyType: source, Dynamic: true, Size: noisySources,
			HasTimeout: true, Timeout: noisyTime}, "how much they ask")
	}
}

func (l *layout) addChain(name string, rules ...rule) {
	l.chains = append(l.chains, chain{&nftables.Chain{Name: name, Table: l.table}, rules})
}

// addBaseChains hooks the table in. The priorities see destinations after DNAT and sources before SNAT, IPVS included,
// and allow reject. The policy is accept: only what is diverted can be refused.
func (l *layout) addBaseChains(cfg Config) {
	add := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority, rules ...rule) {
		policy := nftables.ChainPolicyAccept
		l.chains = append(l.chains, chain{&nftables.Chain{
			Name: name, Table: l.table, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(priority), Policy: &policy,
		}, rules})
	}
	m := cfg.Mask
	established := do(markIs(ctMark, m.Mask(), m.Admitted()), accept).note("established flows")
	// A first packet has neither mark, and passes on two compares.
	marks := []rule{
		do(markSet(ctMark, m.Mask()), jump(chainMarked)).note("other flows we know"),
		do(markSet(packetMark, m.Mask()), jump(chainVerdict)).note("verdicts of userspace"),
	}
	with := func(rules ...rule) []rule { return slices.Concat([]rule{established}, marks, rules) }

	add(chainForward, nftables.ChainHookForward, *nftables.ChainPriorityFilter,
		with(do(goTo(chainDivert)))...)
	add(chainInput, nftables.ChainHookInput, *nftables.ChainPriorityNATSource+1,
		with(do(iif.is(`"lo"`, host(loIndex)...), accept), do(goTo(chainDivert)))...)

	output := []rule{established}
	if cfg.DenyWith == Reject && !cfg.Audit {
		// The kernel's answers to a refused packet pass this hook, resets as well as errors, and are related to the
		// packet's flow (nf_conntrack_attach), whose mark would refuse them.
		output = append(output, do(markIs(ctMark, m.Mask(), m.Revoked()), stateIs("related", expr.CtStateBitRELATED),
			accept).note("the refusal itself"))
	}
	output = append(output, marks...)
	for _, f := range families {
		// Node-local DNS caches keep what they say out of conntrack, so their answers bear no mark.
		output = append(output, f.do(in(f.set(kindNames), f.destination()),
			in(f.set(kindResolvers), f.source(), l4proto, sport), goTo(chainNames)).note("answers of the node itself"))
		// A local pod is asked for as the pair of itself. The node itself always reaches its pods.
		output = append(output, f.do(sourceType.is("local", host(unix.RTN_LOCAL)...),
			notIn(f.set(kindSelf), f.source(), f.source()), accept).note("the node reaches its pods"))
	}
	add(chainOutput, nftables.ChainHookOutput, *nftables.ChainPriorityFilter,
		append(output, do(goTo(chainDivert)))...)
}

// TCP flag bits, RFC 9293, section 3.1.
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// addDivert picks out what must be judged; all else falls off the end of the chain and is accepted. A packet without
// conntrack entry (untracked or invalid) ends the rules that read one, so it goes on to the addresses.
func (l *layout) addDivert() {
	l.addChain(chainDivert,
		do(ctDir.is("reply", 1), accept).note("answers"), // IP_CT_DIR_REPLY
		do(ipv4.only(), goTo(ipv4.set(chainDivert))),
		do(ipv6.only(), goTo(ipv6.set(chainDivert))),
	)
	for _, f := range families {
		source, destination := f.source(), f.destination()
		judge := goTo(f.set(chainJudge))
		l.addChain(f.set(chainDivert),
			f.do(in(f.set(kindIngress), destination), judge),
			f.do(in(f.set(kindEgress), source), judge),
			f.do(in(f.set(kindPods), destination), notIn(f.set(kindKnown), destination), judge).note("a new pod"),
			f.do(in(f.set(kindPods), source), notIn(f.set(kindKnown), source), judge).note("a new pod"),
		)
	}
}

// quiet leaves the statement out of the rule's text, for those that nft's listing leaves out.
func (s stmt) quiet() stmt { s.text = ""; return s }

// addJudge answers from what is known about the tuple, or asks. Cached tuples come first, as most packets here are of
// them. Protocols without ports are in no cache, so it does not matter what is compared as their port.
func (l *layout) addJudge(f *family, audit bool) {
	var rules []rule
	if f == ipv6 {
		// Conntrack leaves these alone. A router never forwards hop limit 255 (RFC 4861, section 11.2).
		rules = append(rules, f.do(l4proto.is("", unix.IPPROTO_ICMPV6).quiet(), hopLimit.is("255", 255),
			in(setNeighbour, icmpv6Type), accept))
	}
	rules = append(rules,
		do(stateIs("invalid", expr.CtStateBitINVALID), goTo(f.set(chainInvalid))),
		f.do(f.whole(), in(f.set(kindAllowed), f.tuple()...), count(counterCached), goTo(f.set(chainCommit))),
		f.hairpin(),
		do(l4proto.is(protoName(f.icmp), f.icmp), stateIs("related", expr.CtStateBitRELATED), accept).
			note("ICMP errors of known flows"),
	)
	if !audit { // the set may be an earlier agent's
		rules = append(rules, f.do(f.whole(), in(f.set(kindDenied), f.tuple()...), goTo(chainRefuse)))
	}
	l.addChain(f.set(chainJudge), append(rules, do(goTo(chainQueue)))...)
}

// hairpin lets a pod reach itself through a Service.
func (f *family) hairpin() rule {
	return f.do(in(f.set(kindSelf), f.source(), f.destination()), accept).note("hairpin")
}

// addInvalid drops packets with no place in their connection, unless nothing else of the pod's would be refused either:
// policies in audit mode must not cost a packet.
func (l *layout) addInvalid(f *family, audit bool) {
	rules := []rule{f.hairpin()}
	if !audit {
		source, destination := f.source(), f.destination()
		refuse := func(match ...stmt) rule { return f.do(append(match, count(counterInvalid), drop)...) }
		rules = append(rules,
			refuse(in(f.set(kindIngress), destination), notIn(f.set(kindIngressAudit), destination)),
			refuse(in(f.set(kindEgress), source), notIn(f.set(kindEgressAudit), source)),
			refuse(in(f.set(kindPods), destination), notIn(f.set(kindKnown), destination)),
			refuse(in(f.set(kindPods), source), notIn(f.set(kindKnown), source)),
		)
	}
	l.addChain(f.set(chainInvalid), append(rules, do(accept).note("policies only audit"))...)
}

// fragment matches packets whose payload may not begin with the ports. Conntrack puts fragments together before any of
// this; what is left are untracked ones.
func (f *family) fragment() stmt {
	if f == ipv4 {
		return fragOff.masked("ip frag-off & 0x1fff != 0x0", []byte{0x1f, 0xff}, expr.CmpOpNeq, []byte{0, 0})
	}
	return fragHeader.is("exists", 1)
}

// whole is the reverse of fragment.
func (f *family) whole() stmt {
	if f == ipv4 {
		return fragOff.masked("ip frag-off & 0x1fff == 0x0", []byte{0x1f, 0xff}, expr.CmpOpEq, []byte{0, 0})
	}
	return fragHeader.is("missing", 0)
}

// addAdmit commits an allow verdict. Each step that can fail is a rule of its own, so that its failure does not stop
// the next: the set may be full, and an untracked packet has no conntrack entry to mark.
func (l *layout) addAdmit(cfg Config) {
	l.addChain(chainAdmit,
		do(count(counterAdmitted)),
		do(clearPacketMark(cfg.Mask.Mask())),
		do(ipv4.only(), goTo(ipv4.set(chainAdmit))),
		do(ipv6.only(), goTo(ipv6.set(chainAdmit))),
	)
	for _, f := range families {
		commit := goTo(f.set(chainCommit))
		l.addChain(f.set(chainAdmit),
			// A flow picked up in the middle may have been allowed for its other direction's sake.
			do(l4proto.is("", unix.IPPROTO_TCP).quiet(), tcpFlags.masked("tcp flags & (syn | ack) != syn",
				[]byte{tcpSYN | tcpACK}, expr.CmpOpNeq, []byte{tcpSYN}), commit).note("opens no connection"),
			do(notIn(setWithPorts, l4proto), commit),
			f.do(f.fragment(), commit),
			f.do(learn(f.set(kindAllowed), f.tuple()...), commit),
			do(count(counterUnlearnt), commit).note("the cache is full"),
		)
	}
}

// addCommit marks a flow that is allowed.
func (l *layout) addCommit(cfg Config) {
	for _, f := range families {
		l.addChain(f.set(chainCommit),
			f.do(in(f.set(kindNames), f.source()), in(f.set(kindResolvers), f.destination(), l4proto, dport),
				goTo(chainFollow)),
			do(setCtMark(cfg.Mask.Mask(), cfg.Mask.Admitted())),
			do(accept),
		)
	}
}

// addNames shows userspace what pods with names for egress peers say to DNS servers, and what these answer: an answer
// goes on when its addresses are in force. All of it is allowed already, so the verdict is a plain accept.
func (l *layout) addNames(cfg Config, features Features) {
	l.addChain(chainFollow,
		do(setCtMark(cfg.Mask.Mask(), cfg.Mask.Followed())),
		do(goTo(chainNames)),
	)
	l.addChain(chainNames,
		do(count(counterFollowed)),
		do(ask(features)(cfg.NameQueue, 1, cfg.FailOpen)),
	)
}

// addMarked is about packets that bear a mark of ours: of flows that are not merely established, and of userspace.
func (l *layout) addMarked(cfg Config) {
	m := cfg.Mask
	var rules []rule
	if !cfg.Audit { // an earlier agent that enforced may have left marks
		rules = append(rules,
			do(markIs(ctMark, m.Mask(), m.Revoked()), goTo(chainRevoked)).note("flows no longer allowed"))
	}
	l.addChain(chainMarked, append(rules,
		do(markIs(ctMark, m.Mask(), m.Followed()), goTo(chainNames)).note("names are learned here"))...)
	// A connection may begin anew between the ports of a revoked flow, whose entry conntrack keeps long after both sides
	// have given up: it is judged for itself.
	l.addChain(chainRevoked,
		do(l4proto.is("", unix.IPPROTO_TCP).quiet(), ctDir.is("original", 0), tcpFlags.masked(
			"tcp flags & (fin | syn | rst | ack) == syn", []byte{tcpFIN | tcpSYN | tcpRST | tcpACK}, expr.CmpOpEq,
			[]byte{tcpSYN}), back).note("a new connection"),
		do(goTo(chainRefuse)),
	)
	l.addChain(chainVerdict, do(markMap(m.Mask(), setVerdicts)))
}

// addRefuse has the two ends of a refusal: deny remembers the tuple of a verdict, refuse lets the packet go.
func (l *layout) addRefuse(cfg Config) {
	refuse := goTo(chainRefuse)
	l.addChain(chainDeny,
		do(ipv4.only(), goTo(ipv4.set(chainDeny))),
		do(ipv6.only(), goTo(ipv6.set(chainDeny))),
	)
	for _, f := range families {
		l.addChain(f.set(chainDeny),
			do(notIn(setWithPorts, l4proto), refuse),
			f.do(f.fragment(), refuse),
			f.do(learn(f.set(kindDenied), f.tuple()...), refuse),
			do(count(counterUnlearnt), refuse).note("the cache is full"),
		)
	}
	rules := []rule{do(count(counterRefused))}
	switch {
	case cfg.Audit:
		rules = []rule{do(accept)}
	case cfg.DenyWith == Reject:
		rules = append(rules,
			// The answer may inherit the packet's mark (sysctl fwmark_reflect) and must not pass for a verdict.
			do(clearPacketMark(cfg.Mask.Mask())),
			do(l4proto.is("tcp", unix.IPPROTO_TCP), rejectReset),
			do(rejectAdmin))
	default:
		rules = append(rules, do(drop))
	}
	l.addChain(chainRefuse, rules...)
}

// A source that asked more than its share while userspace was crowded is noisy: the kernel lets through some of its
// questions and drops the rest, until it has kept within that for noisyTime.
const (
	noisyBurst   = 128 // questions at once; Config has how many a second
	noisyTime    = 2 * time.Second
	noisySources = 4096
)

// addQueue asks userspace for verdicts.
func (l *layout) addQueue(cfg Config, features Features) {
	var rules []rule
	end := drop
	if cfg.Audit { // refuses nothing
		end = accept
	}
	for _, f := range families {
		if !features.Limit {
			break
		}
		// Locally made packets came in by no interface, which ends the rule.
		noisy, source := f.set(kindNoisy), []field{iif, f.source()}
		rules = append(rules, f.do(in(noisy, source...), over(f.set(kindShares), cfg.NoisyRate, noisyBurst, source...),
			count(counterShed), renew(noisy, source...), end).note("more than its share"))
	}
	l.addChain(chainQueue, append(rules,
		do(count(counterQueued)),
		do(ask(features)(cfg.QueueFirst, cfg.QueueCount, cfg.FailOpen)),
	)...)
}

// ask is the statement that the kernel has for sending packets to a queue.
func ask(features Features) func(first, total uint16, bypass bool) stmt {
	if features.NativeQueue {
		return queueNative
	}
	return queueXt
}

// verdictElements are the two packet marks that are acted on under the generation. The comment keeps the whole
// number, of which the mark has only the low bits.
func verdictElements(cfg Config, generation uint32) []nftables.SetElement {
	comment := fmt.Sprintf("%s%d", generationComment, generation)
	element := func(value uint32, chain string) nftables.SetElement {
		return nftables.SetElement{Key: host(value), Comment: comment,
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
	}
	return []nftables.SetElement{
		element(cfg.Mask.Allow(generation), chainAdmit),
		element(cfg.Mask.Deny(generation), chainDeny),
	}
}

const generationComment = "generation "

// setSpec prints what nft writes between the braces of a set.
func setSpec(s *nftables.Set) string {
	var b strings.Builder
	fmt.Fprintf(&b, "type %s", s.KeyType.Name)
	if s.IsMap {
		b.WriteString(" : verdict")
	}
	if s.Size > 0 {
		fmt.Fprintf(&b, "; size %d", s.Size)
	}
	var flags []string
	if s.Interval {
		flags = append(flags, "interval")
	}
	if s.Dynamic {
		flags = append(flags, "dynamic")
	}
	if s.HasTimeout {
		flags = append(flags, "timeout")
	}
	if len(flags) > 0 {
		fmt.Fprintf(&b, "; flags %s", strings.Join(flags, ","))
	}
	if s.HasTimeout {
		fmt.Fprintf(&b, "; timeout %v", s.Timeout.Round(time.Millisecond))
	}
	return b.String()
}
