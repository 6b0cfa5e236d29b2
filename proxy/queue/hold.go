package queue

import "github.com/firstpacket/firstpacket/proxy/internal/slots"

// holdList keeps held packets in the order of their coming, which is the order of their ends, too, as all are held for
// the same time. All memory is taken by init.
type holdList struct {
	list slots.List[holdSlot]
	// memory has size bytes for the payload of each slot.
	memory []byte
	size   int

	// Judging again goes from cursor to the end, up to the first packet that was held after the last wake.
	cursor int32
	wakes  uint32
}

// holdSlot is a held packet.
type holdSlot struct {
	packet   Packet // Payload lies in memory
	deadline int64
	wake     uint32 // holdList.wakes when it was judged last
}

const none = slots.None

func (h *holdList) init(room, size int) {
	*h = holdList{list: slots.New[holdSlot](room, room), memory: make([]byte, room*size), size: size, cursor: none}
}

// add copies the packet; it reports whether there was room.
func (h *holdList) add(p *Packet, deadline int64) bool {
	i := h.list.Add()
	if i == none {
		return false
	}
	s := h.list.At(i)
	*s = holdSlot{packet: *p, deadline: deadline, wake: h.wakes}
	room := h.memory[int(i)*h.size:][:h.size]
	s.packet.Payload = room[:copy(room, p.Payload)]
	s.packet.Held = true
	return true
}

func (h *holdList) remove(i int32) {
	if h.cursor == i {
		h.cursor = h.list.Next(i)
	}
	h.list.At(i).packet.Payload = nil
	h.list.Remove(i)
}

// wakeAll has nextWoken go through all packets that are held now.
func (h *holdList) wakeAll() {
	h.wakes++
	h.cursor = h.list.First()
}

// nextWoken is the next packet to be judged again, or none. The caller removes it or leaves it held.
func (h *holdList) nextWoken() int32 {
	i := h.cursor
	if i == none {
		return none
	}
	s := h.list.At(i)
	if s.wake == h.wakes {
		h.cursor = none
		return none
	}
	s.wake = h.wakes
	h.cursor = h.list.Next(i)
	return i
}

// nextExpired is the oldest packet if its time is over, or none. The caller removes it.
func (h *holdList) nextExpired(now int64) int32 {
	first := h.list.First()
	if first == none || h.list.At(first).deadline > now {
		return none
	}
	return first
}
