package mark

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// layouts is every mask that New accepts.
func layouts(t *testing.T) []Layout {
	t.Helper()
	var all []Layout
	for width := MinBits; width <= 32; width++ {
		for shift := 0; shift+width <= 32; shift++ {
			l, err := New(uint32(uint64(1)<<width-1) << shift)
			if err != nil {
				t.Fatalf("width %d shift %d: %v", width, shift, err)
			}
			all = append(all, l)
		}
	}
	return all
}

func TestEveryContiguousMask(t *testing.T) {
	all := layouts(t)
	if want := 29 * 30 / 2; len(all) != want { // 1 of width 32, 2 of width 31, … 29 of width 4
		t.Fatalf("%d layouts, want %d", len(all), want)
	}
	for _, l := range all {
		within := func(what string, m uint32) {
			if m&^l.Mask() != 0 || m == 0 {
				t.Fatalf("%v: %s %#x is not within the mask", l, what, m)
			}
		}
		within("admitted", l.Admitted())
		within("revoked", l.Revoked())
		if l.Admitted() == l.Revoked() {
			t.Fatalf("%v: admitted and revoked are the same", l)
		}
		for _, m := range []uint32{l.Admitted(), l.Revoked(), 0, ^l.Mask()} {
			if _, _, ok := l.Verdict(m); ok {
				t.Fatalf("%v: %#x is taken for a verdict", l, m)
			}
		}
		// A few generations at either end: the widest mask has 2^30 of them.
		n := uint32(l.Generations())
		seen := map[uint32]bool{}
		for _, g := range []uint32{0, 1, 2, 3, n - 1, n, n + 1, ^uint32(0)} {
			for _, deny := range []bool{false, true} {
				m := l.Allow(g)
				if deny {
					m = l.Deny(g)
				}
				within("verdict", m)
				gotGen, gotDeny, ok := l.Verdict(m | ^l.Mask())
				if !ok || gotDeny != deny || gotGen != g%n {
					t.Fatalf("%v: generation %d deny %t reads back %d %t %t", l, g, deny, gotGen, gotDeny, ok)
				}
				seen[m] = true
			}
		}
		want := 10 // 0 1 2 3 n-1, twice; n, n+1 and 2^32-1 are 0, 1 and n-1 again
		if n == 4 {
			want = 8
		}
		if len(seen) != want {
			t.Fatalf("%v: %d different verdict marks, want %d", l, len(seen), want)
		}
	}
}

func TestDefault(t *testing.T) {
	l, err := New(Default)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what      string
		got, want uint32
	}{
		{"admitted", l.Admitted(), 0x01000000},
		{"revoked", l.Revoked(), 0x02000000},
		{"followed", l.Followed(), 0x03000000},
		{"generations", uint32(l.Generations()), 16},
		{"allow 0", l.Allow(0), 0x20000000},
		{"allow 17", l.Allow(17), 0x21000000},
		{"deny 15", l.Deny(15), 0x3f000000},
		{"with", l.With(0xffffffff, l.Admitted()), 0xc1ffffff},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, c.got, c.want)
		}
	}
	if l.String() != "0x3f000000" {
		t.Errorf("String: %s", l)
	}
}

func TestWithKeepsOtherBits(t *testing.T) {
	all := layouts(t)
	rapid.Check(t, func(t *rapid.T) {
		l := all[rapid.IntRange(0, len(all)-1).Draw(t, "layout")]
		m, v := rapid.Uint32().Draw(t, "mark"), rapid.Uint32().Draw(t, "value")
		got := l.With(m, v)
		if got&^l.Mask() != m&^l.Mask() || got&l.Mask() != v&l.Mask() {
			t.Fatalf("%v: %#x with %#x is %#x", l, m, v, got)
		}
	})
}

func TestNewSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		mask uint32
		want string
	}{
		{0, "it is zero; choose at least 4 neighbouring bits, for example 0x3f000000"},
		{0x5000, "0x5000: its bits have gaps; choose neighbouring bits"},
		{0xf000000f, "0xf000000f: its bits have gaps"},
		{0x7, "0x7: it has 3 bits and needs at least 4; choose a wider one"},
		{0x80000000, "it has 1 bits and needs at least 4"},
	} {
		l, err := New(c.mask)
		if !errors.Is(err, ErrMask) {
			t.Fatalf("%#x: %v", c.mask, err)
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%#x: %q does not say %q", c.mask, err, c.want)
		}
		if l.Valid() {
			t.Errorf("%#x: a layout came with the error", c.mask)
		}
	}
	if _, _, ok := (Layout{}).Verdict(^uint32(0)); ok {
		t.Error("the zero Layout reads a verdict")
	}
}
