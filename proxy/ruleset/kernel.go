package ruleset

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// kernelTable is what the kernel holds under the table's name.
type kernelTable struct {
	present bool
	chains  []*nftables.Chain
	sets    []*nftables.Set
	objects []nftables.Obj
}

func (k *kernelTable) chain(name string) *nftables.Chain {
	if i := slices.IndexFunc(k.chains, func(c *nftables.Chain) bool { return c.Name == name }); i >= 0 {
		return k.chains[i]
	}
	return nil
}

func (k *kernelTable) set(name string) *nftables.Set {
	if i := slices.IndexFunc(k.sets, func(s *nftables.Set) bool { return s.Name == name }); i >= 0 {
		return k.sets[i]
	}
	return nil
}

// read lists the table's chains, sets and objects, without rules and elements.
func (r *Ruleset) read() (*kernelTable, error) {
	k := &kernelTable{}
	if err := r.reads.do(func(c *nftables.Conn) error { return k.read(c, r.layout.table) }); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *kernelTable) read(c *nftables.Conn, table *nftables.Table) error {
	tables, err := c.ListTablesOfFamily(table.Family)
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	k.present = slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == table.Name })
	if !k.present {
		return nil
	}
	chains, err := c.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name == table.Name {
			k.chains = append(k.chains, ch)
		}
	}
	if k.sets, err = c.GetSets(table); err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	k.sets = slices.DeleteFunc(k.sets, func(s *nftables.Set) bool { return s.Anonymous })
	if k.objects, err = c.GetNamedObjects(table); err != nil {
		return fmt.Errorf("list objects: %w", err)
	}
	return nil
}

// content reads the elements of a set.
func (r *Ruleset) content(s *nftables.Set) ([]nftables.SetElement, error) {
	var list []nftables.SetElement
	err := r.reads.do(func(c *nftables.Conn) (err error) {
		list, err = c.GetSetElements(s)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list set %s: %w", s.Name, err)
	}
	slices.SortFunc(list, compareElements)
	return list, nil
}

// sameChain tells whether a base chain is hooked in as it should be. Other chains have nothing that can differ.
func sameChain(have, want *nftables.Chain) bool {
	if (have.Hooknum == nil) != (want.Hooknum == nil) {
		return false
	}
	return want.Hooknum == nil || have.Type == want.Type && *have.Hooknum == *want.Hooknum &&
		*have.Priority == *want.Priority && have.Policy != nil && *have.Policy == *want.Policy
}

// sameSet tells whether the kernel's set can hold and do what the layout's should.
func sameSet(have, want *nftables.Set) bool {
	if have.IsMap != want.IsMap || have.Interval != want.Interval || have.Dynamic != want.Dynamic ||
		have.HasTimeout != want.HasTimeout || have.Timeout != want.Timeout || have.Size != want.Size ||
		have.Constant != want.Constant {
		return false
	}
	// For verdict maps the library gives the type of the data for that of the key.
	return want.IsMap || have.KeyType.Name == want.KeyType.Name && have.KeyType.Bytes == want.KeyType.Bytes
}

// sameRule compares a rule as the kernel prints it with one as it was written.
func sameRule(have *nftables.Rule, want rule) bool {
	exprs := want.exprs()
	if len(have.Exprs) != len(exprs) || !bytes.Equal(have.UserData, want.userData()) {
		return false
	}
	for i := range exprs {
		h, errHave := expr.Marshal(unix.NFPROTO_INET, asWritten(have.Exprs[i]))
		w, errWant := expr.Marshal(unix.NFPROTO_INET, exprs[i])
		if errHave != nil || errWant != nil || !bytes.Equal(h, w) {
			return false
		}
	}
	return true
}

// asWritten undoes what the library loses when it reads: a ct expression that writes comes without its register, and
// with register 0, which none that loads can have.
func asWritten(e expr.Any) expr.Any {
	if c, ok := e.(*expr.Ct); ok && c.Register == 0 {
		return &expr.Ct{Key: c.Key, Register: reg(0), SourceRegister: true}
	}
	return e
}

// target is the chain that a verdict map's element leads to; struct nft_verdict as netlink attributes.
func target(e nftables.SetElement) (string, error) {
	if e.VerdictData != nil {
		return e.VerdictData.Chain, nil
	}
	ad, err := netlink.NewAttributeDecoder(e.Val)
	if err != nil {
		return "", err
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_VERDICT_CHAIN {
			return ad.String(), nil
		}
	}
	return "", ad.Err()
}

// Generation returns the generation that is in force in the kernel. Its error is ErrNotInstalled when there is no
// table, or one without a generation.
func (r *Ruleset) Generation() (uint32, error) {
	k, err := r.read()
	if err != nil {
		return 0, explain(err)
	}
	s := k.set(setVerdicts)
	if s == nil {
		return 0, ErrNotInstalled
	}
	list, err := r.content(s)
	if err != nil {
		return 0, explain(err)
	}
	for _, e := range list {
		text, found := strings.CutPrefix(e.Comment, generationComment)
		generation, err := strconv.ParseUint(text, 10, 32)
		if !found || err != nil || len(e.Key) != 4 {
			continue
		}
		if binaryutil.NativeEndian.Uint32(e.Key) == r.cfg.Mask.Allow(uint32(generation)) {
			return uint32(generation), nil
		}
	}
	return 0, ErrNotInstalled
}

// Allowed returns the tuples that the kernel admits without asking, in the order of their set keys, IPv4 first.
func (r *Ruleset) Allowed() ([]Tuple, error) { return r.tuples(kindAllowed) }

// Denied returns the tuples that the kernel refuses without asking, until their time is over.
func (r *Ruleset) Denied() ([]Tuple, error) { return r.tuples(kindDenied) }

func (r *Ruleset) tuples(kind string) ([]Tuple, error) {
	k, err := r.read()
	if err != nil {
		return nil, explain(err)
	}
	var all []Tuple
	for _, f := range families {
		s := k.set(f.set(kind))
		if s == nil {
			return nil, ErrNotInstalled
		}
		list, err := r.content(s)
		if err != nil {
			return nil, explain(err)
		}
		for _, e := range list {
			if t, ok := tupleOf(f, e.Key); ok {
				all = append(all, t)
			}
		}
	}
	return all, nil
}

// Counters are packets since the table was made. They survive a change of agents.
type Counters struct {
	// Queued went to userspace. Admitted came back with a valid allow verdict, and Cached were admitted by an earlier
	// one. Each of the two counts first packets only.
	Queued, Admitted, Cached uint64
	// Refused were denied, by userspace, by the cache or as packets of a revoked flow. Invalid had no place in their
	// connection.
	Refused, Invalid uint64
	// Shed were dropped unasked because their source is noisy; see Limit.
	Shed uint64
	// Unlearnt are verdicts that the cache had no room for.
	Unlearnt uint64
	// Followed were shown to userspace because pods and DNS servers talk about names in them.
	Followed uint64
}

// Counters reads the packet counters. Its error is ErrNotInstalled when there is no table.
func (r *Ruleset) Counters() (Counters, error) {
	k, err := r.read()
	if err != nil {
		return Counters{}, explain(err)
	}
	if !k.present {
		return Counters{}, ErrNotInstalled
	}
	var counters Counters
	to := map[string]*uint64{
		counterQueued: &counters.Queued, counterAdmitted: &counters.Admitted, counterCached: &counters.Cached,
		counterRefused: &counters.Refused, counterInvalid: &counters.Invalid,
		counterShed: &counters.Shed, counterUnlearnt: &counters.Unlearnt,
		counterFollowed: &counters.Followed,
	}
	for _, o := range k.objects {
		if named, ok := o.(*nftables.NamedObj); ok && to[named.Name] != nil {
			if c, ok := named.Obj.(*expr.Counter); ok {
				*to[named.Name] = c.Packets
			}
		}
	}
	return counters, nil
}
