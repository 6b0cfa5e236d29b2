// Package mark lays out the bits of the packet mark and the conntrack mark that firstpacket uses.
//
// Both marks are 32 bits that all software on a node shares. firstpacket owns the bits of one contiguous mask M, in
// both marks, and neither reads nor writes any other bit. From high to low, M is divided so:
//
//	packet mark:     1 d g…g   a verdict of the agent; d = 1 denies; g…g = generation modulo 2^(width-2)
//	conntrack mark:  0 0…01    ADMITTED: the flow's packets pass without further question
//	                 0 0…10    REVOKED: the flow's packets are refused, in both directions
//	                 0 0…11    FOLLOWED: they pass, and each is shown to the agent before
//
// The top bit tells the two apart, so a conntrack mark that other software copies into the packet mark
// (`meta mark set ct mark`, CONNMARK --restore-mark) is never taken for a verdict.
package mark

import (
	"errors"
	"fmt"
	"math/bits"
)

const (
	// Default is free of the bits that other cluster software uses: kube-proxy 0xc000, portmap 0x2000, AWS 0x80,
	// Weave 0x60000, Tailscale 0xc0000, kube-router 0x30000.
	Default uint32 = 0x3f000000
	// MinBits is the smallest width of a mask: the verdict bit, the deny bit and two bits of generation.
	MinBits = 4
)

// ErrMask is what New returns for a mask that cannot be used; the message says why and what to choose instead.
var ErrMask = errors.New("unusable mark mask")

// Layout is a mark mask and the values inside it. The zero Layout is not usable; make one with New. It is a value,
// may be copied and compared.
type Layout struct {
	mask  uint32
	shift uint8 // of the lowest bit of mask
	width uint8 // bits in mask
}

// New returns the layout of a mask that is contiguous and at least MinBits wide. Its error wraps ErrMask.
func New(mask uint32) (Layout, error) {
	if mask == 0 {
		return Layout{}, fmt.Errorf("%w: it is zero; choose at least %d neighbouring bits, for example %#x",
			ErrMask, MinBits, Default)
	}
	shift, width := bits.TrailingZeros32(mask), bits.OnesCount32(mask)
	if bits.Len32(mask)-shift != width {
		return Layout{}, fmt.Errorf("%w %#x: its bits have gaps; choose neighbouring bits, for example %#x",
			ErrMask, mask, Default)
	}
	if width < MinBits {
		return Layout{}, fmt.Errorf("%w %#x: it has %d bits and needs at least %d; choose a wider one, for example %#x",
			ErrMask, mask, width, MinBits, Default)
	}
	return Layout{mask: mask, shift: uint8(shift), width: uint8(width)}, nil
}

// Mask returns M, the bits that belong to firstpacket.
func (l Layout) Mask() uint32 { return l.mask }

// Valid tells a layout that New made from the zero Layout.
func (l Layout) Valid() bool { return l.mask != 0 }

// String returns the mask as nft prints marks.
func (l Layout) String() string { return fmt.Sprintf("0x%08x", l.mask) }

// Admitted is the conntrack mark, within M, of a flow whose packets pass.
func (l Layout) Admitted() uint32 { return 1 << l.shift }

// Revoked is the conntrack mark, within M, of a flow that was admitted and is no longer allowed.
func (l Layout) Revoked() uint32 { return 2 << l.shift }

// Followed is the conntrack mark, within M, of a flow whose packets pass once the agent has read them.
func (l Layout) Followed() uint32 { return 3 << l.shift }

// Generations is how many generations in a row have different packet marks: 2^(width-2), a power of two >= 4.
func (l Layout) Generations() int { return 1 << (l.width - 2) }

// Allow is the packet mark, within M, of an allow verdict given under the generation.
func (l Layout) Allow(generation uint32) uint32 {
	return l.verdictBit() | (generation<<l.shift)&l.generationMask()
}

// Deny is the packet mark, within M, of a deny verdict given under the generation.
func (l Layout) Deny(generation uint32) uint32 {
	return l.Allow(generation) | l.denyBit()
}

// With returns the mark m with its bits inside M replaced by value's; the bits outside M stay as they are.
func (l Layout) With(m, value uint32) uint32 {
	return m&^l.mask | value&l.mask
}

// Verdict takes a packet mark apart. ok is false when the mark carries no verdict; generation is modulo Generations.
func (l Layout) Verdict(m uint32) (generation uint32, deny, ok bool) {
	if l.mask == 0 || m&l.verdictBit() == 0 {
		return 0, false, false
	}
	return (m & l.generationMask()) >> l.shift, m&l.denyBit() != 0, true
}

func (l Layout) verdictBit() uint32 { return 1 << (l.shift + l.width - 1) }
func (l Layout) denyBit() uint32    { return 1 << (l.shift + l.width - 2) }

func (l Layout) generationMask() uint32 { return l.mask &^ (l.verdictBit() | l.denyBit()) }
