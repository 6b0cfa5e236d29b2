package ruleset

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

// The set "told" is no part of any rule. In it an agent keeps for the next one what pods were told by DNS: it lives as
// long as the rules, in the same transactions, and nobody can write it who could not write the rules.

// Told is that a pod was told an address under a name.
type Told struct {
	// Pod is an address of the pod, and Addr is what it was told.
	Pod, Addr netip.Addr
	// Of is a number that stands for the pod and the name together.
	Of uint64
	// Until is up to when it holds, as time since the machine's start (CLOCK_MONOTONIC), in whole milliseconds.
	Until time.Duration
	// Name has at most 251 bytes; longer ones are left out.
	Name string
}

// longestName is the longest comment that the kernel keeps: the length of an element's user data is counted in a byte
// (linux/include/net/netfilter/nf_tables.h, nft_set_ext_tmpl.ext_len), together with one byte of the kernel's, two of a
// header and the zero behind the name.
const longestName = 251

// toldType has both families in one set; IPv4 addresses are written as mapped ones. The number takes two fields.
var toldType = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeIP6Addr, nftables.TypeMark,
	nftables.TypeMark, nftables.TypeTime)

// toldLen is the length of a key, in bytes.
const toldLen = 16 + 16 + 8 + 8

func (e elements) addTold(list []Told) {
	for _, t := range list {
		if len(t.Name) > longestName {
			continue
		}
		pod, addr := t.Pod.As16(), t.Addr.As16()
		e[setTold] = append(e[setTold], nftables.SetElement{
			Key: slices.Concat(pod[:], addr[:], host(uint32(t.Of>>32)), host(uint32(t.Of)),
				binary.NativeEndian.AppendUint64(nil, uint64(t.Until.Milliseconds()))),
			Comment: t.Name,
		})
	}
}

// toldOf is the reverse of addTold.
func toldOf(e nftables.SetElement) (Told, bool) {
	if len(e.Key) != toldLen || e.Comment == "" {
		return Told{}, false
	}
	addr := func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)).Unmap() }
	u32 := func(b []byte) uint64 { return uint64(binaryutil.NativeEndian.Uint32(b)) }
	return Told{
		Pod: addr(e.Key[:16]), Addr: addr(e.Key[16:32]), Of: u32(e.Key[32:36])<<32 | u32(e.Key[36:40]),
		Until: time.Duration(binary.NativeEndian.Uint64(e.Key[40:])) * time.Millisecond, Name: e.Comment,
	}, true
}

func isTold(e nftables.SetElement) bool { _, ok := toldOf(e); return ok }

// ReadTold is Told for programs that do not write: it changes nothing and leaves the kernel unprobed. netns is a file
// descriptor of the network namespace; 0 means the one of the calling thread.
func ReadTold(netns int) ([]Told, error) {
	r := &Ruleset{layout: newLayout(Config{}, Features{}), reads: link{netns: netns}}
	defer r.Close()
	return r.Told()
}

// Told returns what pods were told, as it is kept; nothing when there is no table.
func (r *Ruleset) Told() ([]Told, error) {
	k, err := r.read()
	if err != nil {
		return nil, fmt.Errorf("read what pods were told: %w", explain(err))
	}
	s := r.layout.set(setTold)
	have := k.set(setTold)
	if have == nil || !sameSet(have, s) {
		return nil, nil // another version's, which Install will replace
	}
	list, err := r.content(s)
	if err != nil {
		return nil, fmt.Errorf("read what pods were told: %w", explain(err))
	}
	told := make([]Told, 0, len(list))
	for _, e := range list {
		if t, ok := toldOf(e); ok {
			told = append(told, t)
		}
	}
	return told, nil
}
