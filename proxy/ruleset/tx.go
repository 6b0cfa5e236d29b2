package ruleset

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	// chunk is how many bytes of elements go into one message: its list must stay below the 64 KiB of a netlink attribute
	// (struct nlattr, 16 bits of length). An element takes at most overhead bytes besides its key and comment.
	chunk, overhead = 60 << 10, 80
	// socketBuffer holds a whole transaction on its way in and the acknowledgements of its messages on the way out,
	// in bytes. Without CAP_NET_ADMIN in the first user namespace the kernel grants less (net.core.wmem_max).
	socketBuffer = 16 << 20
	// patience bounds a transaction that the kernel does not answer.
	patience = 30 * time.Second
	// attempts bounds the repetitions of a transaction that met another one.
	attempts = 10
)

// tx is a transaction: operations in order, applied as a whole or not at all. It prints itself in nft's language.
type tx struct {
	l   *layout
	ops []op
}

type op struct {
	text  string
	apply func(*nftables.Conn) error
}

func (t *tx) add(text string, apply func(*nftables.Conn) error) {
	t.ops = append(t.ops, op{text, apply})
}

// String prints one operation a line, long lists of elements shortened.
func (t *tx) String() string {
	var b strings.Builder
	for _, o := range t.ops {
		b.WriteString(o.text)
		b.WriteByte('\n')
	}
	return b.String()
}

// name of an object of the table, as nft writes it.
func (t *tx) name(object string) string {
	return strings.TrimSuffix("inet "+t.l.table.Name+" "+object, " ")
}

func (t *tx) addTable() {
	t.add("add table "+t.name(""), func(c *nftables.Conn) error { c.AddTable(t.l.table); return nil })
}

func (t *tx) deleteTable() {
	t.add("delete table "+t.name(""), func(c *nftables.Conn) error { c.DelTable(t.l.table); return nil })
}

func (t *tx) addChain(c *nftables.Chain) {
	text := "add chain " + t.name(c.Name)
	if c.Hooknum != nil {
		text += fmt.Sprintf(" { %s }", chainSpec(c))
	}
	t.add(text, func(conn *nftables.Conn) error { conn.AddChain(c); return nil })
}

func (t *tx) deleteChain(c *nftables.Chain) {
	t.add("delete chain "+t.name(c.Name), func(conn *nftables.Conn) error { conn.DelChain(c); return nil })
}

func (t *tx) flushChain(c *nftables.Chain) {
	t.add("flush chain "+t.name(c.Name), func(conn *nftables.Conn) error { conn.FlushChain(c); return nil })
}

func (t *tx) addRule(c *nftables.Chain, r rule) {
	t.add("add rule "+t.name(c.Name)+" "+r.String(), func(conn *nftables.Conn) error {
		conn.AddRule(&nftables.Rule{Table: t.l.table, Chain: c, Exprs: r.exprs(), UserData: r.userData()})
		return nil
	})
}

func (t *tx) addCounter(name string) {
	t.add("add counter "+t.name(name), func(c *nftables.Conn) error {
		c.AddObj(&nftables.NamedObj{Table: t.l.table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
		return nil
	})
}

func (t *tx) deleteObject(o nftables.Obj, name string) {
	t.add("delete object "+t.name(name), func(c *nftables.Conn) error { c.DeleteObject(o); return nil })
}

func (t *tx) addSet(s *nftables.Set) {
	kind := "set"
	if s.IsMap {
		kind = "map"
	}
	t.add(fmt.Sprintf("add %s %s { %s; comment %q }", kind, t.name(s.Name), setSpec(s), s.Comment),
		func(c *nftables.Conn) error {
			fresh := *s // AddSet numbers the set
			return c.AddSet(&fresh, nil)
		})
}

func (t *tx) deleteSet(s *nftables.Set) {
	t.add("delete set "+t.name(s.Name), func(c *nftables.Conn) error { c.DelSet(s); return nil })
}

func (t *tx) flushSet(s *nftables.Set) {
	t.add("flush set "+t.name(s.Name), func(c *nftables.Conn) error { c.FlushSet(s); return nil })
}

// addElements adds what is not there yet.
func (t *tx) addElements(s *nftables.Set, list []nftables.SetElement) {
	t.eachChunk("add", s, list, (*nftables.Conn).SetAddElements)
}

// deleteElements fails when an element is not there.
func (t *tx) deleteElements(s *nftables.Set, list []nftables.SetElement) {
	t.eachChunk("delete", s, list, (*nftables.Conn).SetDeleteElements)
}

// dropElements removes elements, whether they are there or not: an element that was just added can be deleted.
func (t *tx) dropElements(s *nftables.Set, list []nftables.SetElement) {
	t.addElements(s, list)
	t.deleteElements(s, list)
}

func (t *tx) eachChunk(verb string, s *nftables.Set, list []nftables.SetElement,
	apply func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) {
	for len(list) > 0 {
		n := 0
		for size := 0; n < len(list) && size < chunk; n++ {
			size += overhead + len(list[n].Key) + len(list[n].Comment)
		}
		part := list[:n]
		t.add(fmt.Sprintf("%s element %s { %s }", verb, t.name(s.Name), elementsText(s, part)),
			func(c *nftables.Conn) error { return apply(c, s, part) })
		list = list[n:]
	}
}

// eachSet calls f for every set that e has elements of, in the order of the table.
func (l *layout) eachSet(e elements, f func(*nftables.Set, []nftables.SetElement)) {
	for _, s := range l.sets {
		if list := e[s.Name]; len(list) > 0 {
			f(s, list)
		}
	}
}

func (l *layout) set(name string) *nftables.Set {
	for _, s := range l.sets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func chainSpec(c *nftables.Chain) string {
	hook := map[nftables.ChainHook]string{
		*nftables.ChainHookForward: "forward", *nftables.ChainHookInput: "input", *nftables.ChainHookOutput: "output",
	}[*c.Hooknum]
	return fmt.Sprintf("type %s hook %s priority %d; policy accept;", c.Type, hook, *c.Priority)
}

// elementsText prints the first few elements.
func elementsText(s *nftables.Set, list []nftables.SetElement) string {
	const few = 6
	var texts []string
	for _, e := range list[:min(few, len(list))] {
		texts = append(texts, elementText(s, e))
	}
	if more := len(list) - few; more > 0 {
		texts = append(texts, fmt.Sprintf("… %d more", more))
	}
	return strings.Join(texts, ", ")
}

func elementText(s *nftables.Set, e nftables.SetElement) string {
	var text string
	fields := nftables.ConcatSetTypeElements(s.KeyType)
	if s.IsMap {
		fields = []nftables.SetDatatype{nftables.TypeMark} // the kernel's answer has the data type in its place
	}
	key := e.Key
	for i, f := range fields {
		if i > 0 {
			text += " . "
		}
		n := min(int(f.Bytes), len(key))
		text += fieldText(f, key[:n])
		key = key[min((n+3)/4*4, len(key)):]
	}
	if e.IntervalEnd {
		text = "end " + text
	}
	if e.Comment != "" {
		text += fmt.Sprintf(" comment %q", e.Comment)
	}
	if v := e.VerdictData; v != nil {
		text += " : goto " + v.Chain
	}
	return text
}

func fieldText(f nftables.SetDatatype, b []byte) string {
	switch f.Name {
	case nftables.TypeIPAddr.Name, nftables.TypeIP6Addr.Name:
		if a, ok := netip.AddrFromSlice(b); ok {
			return a.String()
		}
	case nftables.TypeMark.Name:
		if len(b) == 4 {
			return fmt.Sprintf("0x%08x", binaryutil.NativeEndian.Uint32(b))
		}
	case nftables.TypeInetService.Name:
		if len(b) == 2 {
			return fmt.Sprint(binaryutil.BigEndian.Uint16(b))
		}
	case nftables.TypeInetProto.Name:
		if len(b) == 1 && protoName(b[0]) != "proto" {
			return protoName(b[0])
		}
	}
	if len(b) == 1 {
		return fmt.Sprint(b[0])
	}
	return hex.EncodeToString(b)
}

// send applies the transaction once.
func (t *tx) send(c *nftables.Conn) error {
	for _, o := range t.ops {
		if err := o.apply(c); err != nil {
			return fmt.Errorf("%s: %w", o.text, err)
		}
	}
	return c.Flush()
}

// commit builds and sends a transaction, again when it met another program's. Each attempt builds anew, from what the
// kernel holds by then. A transaction may have been applied although its answer was lost (ENOBUFS), so build must give
// one that may be applied twice.
func (r *Ruleset) commit(build func() (*tx, error)) error {
	wait := time.Millisecond
	for attempt := 1; ; attempt++ {
		t, err := build()
		if err == nil && len(t.ops) > 0 {
			if r.cfg.Trace != nil {
				r.cfg.Trace(t)
			}
			err = r.writes.do(t.send)
		}
		if err == nil && len(t.ops) > 0 {
			r.commits.Add(1)
		}
		if err == nil || !passing(err) || attempt == attempts {
			return explain(err)
		}
		time.Sleep(wait)
		wait *= 2
	}
}

// passing tells errors that the same transaction may not meet again.
func passing(err error) bool {
	for _, e := range []error{unix.EBUSY, unix.EINTR, unix.ENOBUFS, unix.EAGAIN, unix.ERESTART} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
