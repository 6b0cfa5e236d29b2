package ruleset

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
)

func toldAt(i int, name string) Told {
	return Told{
		Pod: podAddrs[i%2], Addr: netip.AddrFrom4([4]byte{203, 0, byte(i / 256), byte(i)}),
		Of: 0xfedc_ba98_7654_3210 + uint64(i), Until: 26*time.Hour + time.Duration(i)*time.Millisecond, Name: name,
	}
}

func sortTold(list []Told) []Told {
	slices.SortFunc(list, func(a, b Told) int { return cmp.Compare(a.Of, b.Of) })
	return list
}

// TestToldOutlivesTheAgent: what one agent had kept, the next one reads; and only the owner of the table writes.
func TestToldOutlivesTheAgent(t *testing.T) {
	b, first, second := two(t)
	state := isolated(true, false)
	if told, err := first.Told(); err != nil || told != nil {
		t.Errorf("before there is a table: %v, %v", told, err)
	}
	b.must(first.Install(state))
	longest := strings.Repeat("a", longestName)
	kept := []Told{toldAt(0, "www.example.com"), toldAt(1, longest), {
		Pod: podAddrs[0], Addr: netip.MustParseAddr("2001:db8::1"), Of: 1 << 63, Until: time.Millisecond, Name: "a.net",
	}}
	for range 2 { // twice is no error
		b.must(first.Apply(Update{Generation: generation, Told: append(kept, toldAt(2, longest+"b"), toldAt(3, "gone.net"))}))
		b.must(first.Apply(Update{Generation: generation, Untold: []Told{toldAt(3, "gone.net"), toldAt(4, "never.net")}}))
	}
	if told, err := second.Told(); err != nil || !slices.Equal(sortTold(told), sortTold(kept)) {
		t.Fatalf("%v, %v, want %v", told, err, kept)
	}

	b.must(second.Install(state)) // whatever its state says
	if err := first.Apply(Update{Generation: generation, Told: []Told{toldAt(5, "late.net")}}); err == nil {
		t.Error("a replaced agent writes")
	}
	if told, err := second.Told(); err != nil || !slices.Equal(sortTold(told), kept) {
		t.Errorf("after the next agent came: %v, %v, want %v", told, err, kept)
	}
	state.Told = kept
	if drift, err := second.Check(state); err != nil || len(drift) != 0 {
		t.Errorf("%v, %v", drift, err)
	}
}

// TestToldIsRepaired: unlike what the rules learn themselves, it is the agent's alone.
func TestToldIsRepaired(t *testing.T) {
	r := bare(t, func(c *Config) { c.Owner = 5 })
	state := isolated(true, false)
	state.Told = []Told{toldAt(0, "www.example.com"), toldAt(2, "exact.org")}
	for _, step := range []func() error{
		func() error { return r.Install(state) },
		func() error { return r.Apply(Update{Generation: generation, Told: state.Told}) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	strange := elements{}
	strange.addTold([]Told{toldAt(4, "evil.net")})
	strange[setTold] = append(strange[setTold], nftables.SetElement{Key: make([]byte, toldLen)}) // without a name
	one := elements{}
	one.addTold(state.Told[:1])
	tamper := func() {
		r.alter(t, func(c *nftables.Conn) {
			_ = c.SetAddElements(r.layout.set(setTold), strange[setTold])
			_ = c.SetDeleteElements(r.layout.set(setTold), one[setTold])
		})
	}
	tamper()
	drift, err := r.Check(state)
	if err != nil || len(drift) != 3 || !strings.HasPrefix(drift[0].String(), "set told: ") {
		t.Errorf("%v, %v", drift, err)
	}
	if err := r.Repair(state); err != nil {
		t.Fatal(err)
	}
	if drift, err := r.Check(state); err != nil || len(drift) != 0 {
		t.Errorf("after the repair: %v, %v", drift, err)
	}
	// The next agent keeps what can be read.
	tamper()
	if err := r.Install(State{Generation: generation + 1}); err != nil {
		t.Fatal(err)
	}
	told, err := r.Told()
	if want := []Told{toldAt(2, "exact.org"), toldAt(4, "evil.net")}; err != nil || !slices.Equal(sortTold(told), want) {
		t.Errorf("%v, %v, want %v", told, err, want)
	}
}

// TestMuchIsTold in one transaction, with long names.
func TestMuchIsTold(t *testing.T) {
	r := bare(t)
	if err := r.Install(State{Generation: 1}); err != nil {
		t.Fatal(err)
	}
	var all []Told
	for i := range 4000 {
		all = append(all, toldAt(i, fmt.Sprintf("%d.%s.com", i, strings.Repeat("a", 230))))
	}
	if err := r.Apply(Update{Generation: 2, Told: all}); err != nil {
		t.Fatal(err)
	}
	if told, err := r.Told(); err != nil || !slices.Equal(sortTold(told), all) {
		t.Errorf("%d are told, %v", len(told), err)
	}
	if err := r.Apply(Update{Generation: 3, Untold: all}); err != nil {
		t.Fatal(err)
	}
	if told, err := r.Told(); err != nil || len(told) != 0 {
		t.Errorf("%d are told, %v", len(told), err)
	}
}
