package ruleset

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Lists longer than a netlink attribute still make one transaction.
func TestManyElements(t *testing.T) {
	var transactions int
	r := bare(t, func(c *Config) { c.Trace = func(fmt.Stringer) { transactions++ } })
	state := State{Generation: 1}
	for i := range 2500 {
		state.Subjects = append(state.Subjects,
			Subject{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Pod: true, Ingress: true},
			Subject{Addr: netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)}), Pod: true, Egress: true})
	}
	if err := r.Install(state); err != nil {
		t.Fatal(err)
	}
	check := func(s State) {
		t.Helper()
		if drifts, err := r.Check(s); err != nil || len(drifts) != 0 {
			t.Fatalf("%d drifts, %v", len(drifts), err)
		}
	}
	check(state)
	var tuples []Tuple
	for i := range 2500 {
		a := state.Subjects[2*i+1].Addr
		tuples = append(tuples, Tuple{a, a, unix.IPPROTO_TCP, uint16(i)})
	}
	var removed []netip.Addr
	for _, s := range state.Subjects[1000:] {
		removed = append(removed, s.Addr)
	}
	transactions = 0
	if err := r.Apply(Update{Generation: 2, Removed: removed, Learn: tuples}); err != nil {
		t.Fatal(err)
	}
	check(State{Generation: 2, Subjects: state.Subjects[:1000]})
	if allowed, err := r.Allowed(); err != nil || len(allowed) != len(tuples) {
		t.Fatalf("%d allowed, %v", len(allowed), err)
	}
	if err := r.Apply(Update{Generation: 3, Forget: tuples}); err != nil {
		t.Fatal(err)
	}
	if allowed, err := r.Allowed(); err != nil || len(allowed) != 0 {
		t.Fatalf("%d allowed after forgetting, %v", len(allowed), err)
	}
	if transactions != 2 {
		t.Errorf("%d transactions for two updates", transactions)
	}
}

func TestTransactionPrints(t *testing.T) {
	for _, how := range []DenyWith{Drop, Reject} {
		t.Run(how.String(), func(t *testing.T) {
			cfg, err := Config{Mask: layoutOfMarks, QueueFirst: 100, QueueCount: 4, DenyWith: how}.withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			r := &Ruleset{cfg: cfg, layout: newLayout(cfg, Features{NativeQueue: true, Limit: true})}
			tx := &tx{l: r.layout}
			tx.addTable()
			if err := r.install(tx, &kernelTable{}, r.elements(isolated(true, false)), adoptTold); err != nil {
				t.Fatal(err)
			}
			golden := "testdata/install-" + how.String() + ".txt"
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), tx.String()); diff != "" {
				t.Errorf("%s differs; -want +got\n%s", golden, diff)
			}
		})
	}
}

// A transaction that met another program's is built and sent again; any other error is final.
func TestCommitRepeats(t *testing.T) {
	r := bare(t)
	for _, c := range []struct {
		err    error
		builds int
	}{
		{unix.EBUSY, 3}, {unix.EINTR, 3}, {unix.ENOBUFS, 3}, {unix.EEXIST, 1}, {unix.EPERM, 1},
	} {
		builds := 0
		err := r.commit(func() (*tx, error) {
			if builds++; builds < 3 {
				return nil, fmt.Errorf("somewhere: %w", c.err)
			}
			return &tx{l: r.layout}, nil
		})
		if builds != c.builds || (err == nil) != (c.builds == 3) {
			t.Errorf("%v: %d builds, %v", c.err, builds, err)
		}
	}
	builds := 0
	err := r.commit(func() (*tx, error) { builds++; return nil, unix.EBUSY })
	if builds != attempts || !errors.Is(err, unix.EBUSY) {
		t.Errorf("for ever busy: %d builds, %v", builds, err)
	}
}

func TestBarrierReturns(t *testing.T) {
	for range 3 {
		Barrier()
	}
}

func TestPrefixes(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want string
	}{
		{[]string{"10.0.0.0/24", "10.0.1.0/24"}, "pods4: 10.0.0.0, end 10.0.1.0, 10.0.1.0, end 10.0.2.0"},
		{[]string{"10.0.3.0/24", "10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/8"}, "pods4: 10.0.0.0, end 11.0.0.0"},
		{[]string{"0.0.0.0/0"}, "pods4: 0.0.0.0"},
		{[]string{"255.255.255.255/32", "10.1.2.3/22"}, "pods4: 10.1.0.0, end 10.1.4.0, 255.255.255.255"},
		{[]string{"fd00:1:2::/61", "ff00::/8"}, "pods6: fd00:1:2::, end fd00:1:2:8::, ff00::"},
	} {
		var prefixes []netip.Prefix
		for _, p := range c.in {
			prefixes = append(prefixes, netip.MustParsePrefix(p))
		}
		e := elements{}
		addPrefixes(e, prefixes)
		e.normalize()
		for name, list := range e {
			var texts []string
			for _, el := range list {
				texts = append(texts, elementText(&nftables.Set{KeyType: families[len(el.Key)/16].addrType}, el))
			}
			if got := name + ": " + strings.Join(texts, ", "); got != c.want {
				t.Errorf("%v: %s, want %s", c.in, got, c.want)
			}
		}
		// The kernel takes them, too.
		r := bare(t)
		s := State{PodCIDRs: prefixes}
		if err := r.Install(s); err != nil {
			t.Fatalf("%v: %v", c.in, err)
		}
		if drifts, err := r.Check(s); err != nil || len(drifts) != 0 {
			t.Errorf("%v: %v, %v", c.in, drifts, err)
		}
	}
}
