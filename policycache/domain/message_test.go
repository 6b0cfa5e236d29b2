package domain_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/firstpacket/firstpacket/policycache/domain"
)

// record is one of an answer section, in the form that the reference understands.
type record struct {
	name   string
	ttl    uint32
	target string // CNAME
	addr   netip.Addr
}

// build packs a message; nil records make a query.
func build(t testing.TB, h dnsmessage.Header, name string, kind dnsmessage.Type, records []record) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: h, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET},
	}}
	for _, r := range records {
		head := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(r.name), Class: dnsmessage.ClassINET, TTL: r.ttl}
		var body dnsmessage.ResourceBody
		switch {
		case r.target != "":
			body = &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(r.target)}
		case r.addr.Is4():
			body = &dnsmessage.AResource{A: r.addr.As4()}
		default:
			body = &dnsmessage.AAAAResource{AAAA: r.addr.As16()}
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: body})
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reference walks the chain record by record, from the name on, over the whole list at each step.
func reference(name string, v6 bool, records []record) (names []string, addrs []netip.Addr, ttl uint32, ok bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	ttl = 1<<31 - 1
	lower := func(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }
	for _, a := range records {
		for _, b := range records {
			if a.target != "" && b.target != "" && lower(a.name) == lower(b.name) && lower(a.target) != lower(b.target) {
				return nil, nil, 0, false
			}
		}
	}
	for {
		names = append(names, name)
		if len(names) > 17 {
			return nil, nil, 0, false
		}
		next := ""
		for _, r := range records {
			if r.target != "" && lower(r.name) == name {
				next, ttl = lower(r.target), min(ttl, r.ttl)
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	for _, r := range records {
		if r.target != "" || lower(r.name) != name || r.addr.Is4() == v6 {
			continue
		}
		ttl = min(ttl, r.ttl)
		global := r.addr.IsGlobalUnicast() && !r.addr.Is4In6()
		if global && !slices.Contains(addrs, r.addr) {
			addrs = append(addrs, r.addr)
		}
	}
	return names, addrs, ttl, true
}

func one[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// TestAnswersAreTheReferences compares random answer sections.
func TestAnswersAreTheReferences(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	names := []string{"a.example.", "B.example.", "c.example.", "d.x.example.", "A.Example."}
	addrs := []netip.Addr{
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1"),
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("::1"),
		netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("::ffff:192.0.2.9"), netip.MustParseAddr("fe80::1"),
		netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("0.0.0.0"),
	}
	learned, refused := 0, 0
	for range 20_000 {
		var records []record
		for range r.IntN(6) {
			rec := record{name: one(r, names...), ttl: one[uint32](r, 0, 5, 60, 86400)}
			if r.IntN(2) == 0 {
				rec.target = one(r, names...)
			} else {
				rec.addr = one(r, addrs...)
			}
			records = append(records, rec)
		}
		kind, v6 := dnsmessage.TypeA, r.IntN(2) == 0
		if v6 {
			kind = dnsmessage.TypeAAAA
		}
		name := one(r, names...)
		b := build(t, dnsmessage.Header{ID: 7, Response: true}, name, kind, records)
		q, a, err := domain.ParseResponse(b)
		wantNames, wantAddrs, ttl, ok := reference(name, v6, records)
		if want := (domain.Question{ID: 7, Name: name, V6: v6}); q != want {
			t.Fatalf("question %+v, want %+v", q, want)
		}
		if (err == nil) != ok {
			t.Fatalf("%+v: %v, want success %t", records, err, ok)
		}
		if !ok {
			refused++
			if !errors.Is(err, domain.ErrMessage) || len(a.Addrs) > 0 {
				t.Fatalf("%+v: %v, %v", records, a, err)
			}
			continue
		}
		if !slices.Equal(a.Addrs, wantAddrs) {
			t.Fatalf("%s of %+v: %v, want %v", name, records, a.Addrs, wantAddrs)
		}
		if len(wantAddrs) > 0 {
			learned++
			if !slices.Equal(a.Names, wantNames) || a.TTL != time.Duration(ttl)*time.Second {
				t.Fatalf("%s of %+v: %v for %v, want %v for %d s", name, records, a.Names, a.TTL, wantNames, ttl)
			}
		}
	}
	if learned < 500 || refused < 500 {
		t.Errorf("%d learned, %d refused: the generator is no good", learned, refused)
	}
}

// TestNothingIsLearned from messages that are no answer for addresses.
func TestNothingIsLearned(t *testing.T) {
	good := []record{{name: "a.example.", ttl: 60, addr: netip.MustParseAddr("192.0.2.1")}}
	for name, h := range map[string]dnsmessage.Header{
		"query":     {ID: 1},
		"truncated": {ID: 1, Response: true, Truncated: true},
		"failure":   {ID: 1, Response: true, RCode: dnsmessage.RCodeServerFailure},
		"no name":   {ID: 1, Response: true, RCode: dnsmessage.RCodeNameError},
		"notify":    {ID: 1, Response: true, OpCode: 4},
	} {
		_, a, _ := domain.ParseResponse(build(t, h, "a.example.", dnsmessage.TypeA, good))
		if len(a.Addrs) > 0 {
			t.Errorf("%s: learned %v", name, a)
		}
	}
	b := build(t, dnsmessage.Header{ID: 1, Response: true}, "a.example.", dnsmessage.TypeHTTPS, good)
	if _, _, err := domain.ParseResponse(b); !errors.Is(err, domain.ErrIrrelevant) {
		t.Errorf("HTTPS: %v", err)
	}
	b = build(t, dnsmessage.Header{ID: 1, Response: true}, "a.example.", dnsmessage.TypeA, good)
	for i := range b {
		if _, a, err := domain.ParseResponse(b[:i]); err == nil || len(a.Addrs) > 0 {
			t.Errorf("cut at %d: %v, %v", i, a, err)
		}
	}
}

func TestQueries(t *testing.T) {
	query := build(t, dnsmessage.Header{ID: 9, RecursionDesired: true}, "wWw.Example.", dnsmessage.TypeAAAA, nil)
	q, err := domain.ParseQuery(query)
	if want := (domain.Question{ID: 9, Name: "wWw.Example.", V6: true}); err != nil || q != want {
		t.Errorf("%+v, %v", q, err)
	}
	for name, b := range map[string][]byte{
		"response": build(t, dnsmessage.Header{Response: true}, "a.b.", dnsmessage.TypeA, nil),
		"update":   build(t, dnsmessage.Header{OpCode: 5}, "a.b.", dnsmessage.TypeA, nil),
		"text":     build(t, dnsmessage.Header{}, "a.b.", dnsmessage.TypeTXT, nil),
		"nothing":  nil,
		"noise":    []byte("GET / HTTP/1.1\r\n"),
	} {
		if q, err := domain.ParseQuery(b); err == nil {
			t.Errorf("%s: %+v", name, q)
		}
	}
}

// FuzzParseResponse: no bytes make it panic, and what it takes for an answer the library packs and reads alike.
func FuzzParseResponse(f *testing.F) {
	f.Add(build(f, dnsmessage.Header{ID: 1, Response: true}, "a.example.", dnsmessage.TypeA, []record{
		{name: "a.example.", ttl: 5, target: "b.example."},
		{name: "b.example.", ttl: 5, addr: netip.MustParseAddr("192.0.2.1")},
	}))
	f.Add(build(f, dnsmessage.Header{ID: 1}, "a.example.", dnsmessage.TypeAAAA, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, a, err := domain.ParseResponse(b)
		if err != nil && !errors.Is(err, domain.ErrMessage) && !errors.Is(err, domain.ErrIrrelevant) {
			t.Errorf("%v is no error of the package", err)
		}
		if len(a.Addrs) > 0 && (err != nil || len(a.Names) == 0 || len(a.Names) > 17 || a.TTL < 0) {
			t.Errorf("%+v, %v", a, err)
		}
		var m dnsmessage.Message
		if len(a.Addrs) > 0 && m.Unpack(b) == nil {
			if !m.Response || m.Truncated || m.RCode != 0 || len(m.Questions) != 1 || m.ID != q.ID {
				t.Errorf("learned %v from %v", a, m.GoString())
			}
		}
		if _, err := domain.ParseQuery(b); err == nil && q != (domain.Question{}) {
			t.Error("both a query and a response")
		}
	})
}

func TestPage(t *testing.T) {
	start := time.Unix(1000, 0)
	addr := netip.MustParseAddr
	a, b := addr("192.0.2.1"), addr("2001:db8::1")
	var p domain.Page
	learn := func(until int, names []string, addrs ...netip.Addr) []netip.Addr {
		return p.Learn(domain.Answer{Names: names, Addrs: addrs}, start.Add(time.Duration(until)*time.Second))
	}
	check := func(what string, got []netip.Addr, want ...netip.Addr) {
		t.Helper()
		slices.SortFunc(got, netip.Addr.Compare)
		if !slices.Equal(got, want) {
			t.Errorf("%s changed %v, want %v", what, got, want)
		}
	}
	check("the first answer", learn(60, []string{"x"}, a, b), a, b)
	check("the same again", learn(90, []string{"x"}, a))
	check("an earlier end", learn(30, []string{"x"}, a))
	check("another name", learn(40, []string{"y"}, a), a)
	check("nothing over", p.Expire(start.Add(39*time.Second)))
	check("y over", p.Expire(start.Add(40*time.Second)), a)
	if live, lapsed := p.Names(a); !reflect.DeepEqual([][]string{live, lapsed}, [][]string{{"x"}, {"y"}}) {
		t.Errorf("live %v, lapsed %v", live, lapsed)
	}
	check("x over for b", p.Expire(start.Add(60*time.Second)), b)
	check("x over for a", p.Expire(start.Add(90*time.Second)), a)
	check("nothing left", p.Expire(start.Add(900*time.Second)))
	check("asked again", learn(1000, []string{"y"}, a), a)
	if live, lapsed := p.Names(a); !reflect.DeepEqual([][]string{live, lapsed}, [][]string{{"y"}, {"x"}}) {
		t.Errorf("live %v, lapsed %v", live, lapsed)
	}
}

// TestPageKeepsItsBounds and lets go of what ends first.
func TestPageKeepsItsBounds(t *testing.T) {
	var p domain.Page
	start, next := time.Unix(1000, 0), netip.MustParseAddr("2001:db8::")
	held := map[netip.Addr]bool{}
	for i := range 3 * domain.MaxAddrs {
		next = next.Next()
		for _, a := range p.Learn(domain.Answer{Names: []string{"x"}, Addrs: []netip.Addr{next}},
			start.Add(time.Duration(i)*time.Second)) {
			held[a] = a == next
		}
		if p.Len() > domain.MaxAddrs {
			t.Fatalf("%d addresses", p.Len())
		}
	}
	if live, _ := p.Names(next); len(live) == 0 {
		t.Error("the newest is gone")
	}
	n := 0
	for _, h := range held {
		if h {
			n++
		}
	}
	if n != p.Len() {
		t.Errorf("%d are said to be there, %d are", n, p.Len())
	}
	for i := range 1000 {
		p.Learn(domain.Answer{Names: []string{strings.Repeat("x", i+1)}, Addrs: []netip.Addr{next}}, start.Add(time.Hour))
	}
	if live, _ := p.Names(next); len(live) > 64 {
		t.Errorf("%d names", len(live))
	}
}

func TestLifetime(t *testing.T) {
	for ttl, want := range map[time.Duration]time.Duration{
		0: time.Minute, time.Minute: 90 * time.Second, 24 * time.Hour: time.Hour + 30*time.Second,
	} {
		if got := domain.Lifetime(ttl); got != want {
			t.Errorf("a TTL of %v lasts %v, want %v", ttl, got, want)
		}
	}
}
