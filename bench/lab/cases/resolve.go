package cases

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/firstpacket/firstpacket/bench/lab/dns"
)

// ask is one line of a resolve section.
type ask struct{ pod, name string }

func parseAsk(words []string) (ask, error) {
	if len(words) != 2 {
		return ask{}, errors.New("want a pod and a name")
	}
	return ask{words[0], words[1]}, nil
}

// dnsServer is the pod that answers; a case that resolves names applies it, without ports.
const dnsServer = "kube-system/coredns"

// zone is what it says.
func zone() []dns.Record {
	var records []dns.Record
	add := func(name string, addrs ...string) {
		for _, a := range addrs {
			records = append(records, dns.Record{Name: name, TTL: 60, Addr: netip.MustParseAddr(a)})
		}
	}
	for _, name := range []string{
		"world.example.com", "deep.world.example.com", "example.com", "world.test", dns.LargePrefix + "example.com",
	} {
		add(name, "203.0.113.7", "2001:db8::7")
	}
	add("other.example.com", "198.51.100.9", "2001:db8:1::9")
	add("pod.example.com", "10.244.1.11", "fd10:244:0:1::11") // x/b
	return append(records,
		dns.Record{Name: "alias.example.com", TTL: 60, Alias: "world.test"},
		dns.Record{Name: "alias.test", TTL: 60, Alias: "world.example.com"})
}

// resolve has pods ask for addresses of both families, over the first family that they have.
func (s *seat) resolve(asks []ask) (err error) {
	place, err := s.lab.Place(dnsServer)
	if err != nil {
		return fmt.Errorf("%w: apply pod %s first: %w", errCase, dnsServer, err)
	}
	server, err := dns.Serve(place.NS)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	server.Set(zone()...)
	for _, a := range asks {
		pod, err := s.lab.Place(a.pod)
		if err != nil {
			return fmt.Errorf("%w: %w", errCase, err)
		}
		for _, v6 := range []bool{false, true} {
			addrs, err := dns.Resolve(dns.Question{
				From: pod.NS, To: place.At(pod.Addrs[0].Is6(), dns.Port), Name: a.name, V6: v6, Wait: patience,
			})
			if err != nil {
				return err
			}
			if len(addrs) == 0 {
				return fmt.Errorf("%w: nobody has the name %s", errCase, a.name)
			}
		}
	}
	return nil
}
