package queue

// holdList keeps held packets in the order of their coming, which is the order of their ends, too, as all are held for
// the same time. All memory is taken by init.
type holdList struct {
	slots      []holdSlot
	free       int32 // first of the unused slots, linked by next
	head, tail int32
	count      int

	// Judging again goes from cursor to the tail, up to the first packet that was held after the last wake.
	cursor int32
	wakes  uint32
}

// holdSlot is a held packet, in a list by slot numbers; none ends the list.
type holdSlot struct {
	packet     Packet // Payload lies in buf
	buf        []byte
	deadline   int64
	wake       uint32 // holdList.wakes when it was judged last
	prev, next int32
}

const none = -1

func (h *holdList) init(slots, size int) {
	*h = holdList{slots: make([]holdSlot, slots), free: none, head: none, tail: none, cursor: none}
	memory := make([]byte, slots*size)
	for i := slots - 1; i >= 0; i-- {
		h.slots[i].buf = memory[i*size : (i+1)*size : (i+1)*size]
		h.slots[i].next = h.free
		h.free = int32(i)
	}
}

// add copies the packet; it reports whether there was room.
func (h *holdList) add(p *Packet, deadline int64) bool {
	i := h.free
	if i == none {
		return false
	}
	s := &h.slots[i]
	h.free = s.next
	s.packet = *p
	s.packet.Payload = s.buf[:copy(s.buf, p.Payload)]
	s.packet.Held = true
	s.deadline, s.wake = deadline, h.wakes
	s.prev, s.next = h.tail, none
	if h.tail == none {
		h.head = i
	} else {
		h.slots[h.tail].next = i
	}
	h.tail = i
	h.count++
	return true
}

func (h *holdList) remove(i int32) {
	s := &h.slots[i]
	if h.cursor == i {
		h.cursor = s.next
	}
	if s.prev == none {
		h.head = s.next
	} else {
		h.slots[s.prev].next = s.next
	}
	if s.next == none {
		h.tail = s.prev
	} else {
		h.slots[s.next].prev = s.prev
	}
	s.packet.Payload = nil
	s.next, h.free = h.free, i
	h.count--
}

// wakeAll has nextWoken go through all packets that are held now.
func (h *holdList) wakeAll() {
	h.wakes++
	h.cursor = h.head
}

// nextWoken is the next packet to be judged again, or none. The caller removes it or leaves it held.
func (h *holdList) nextWoken() int32 {
	i := h.cursor
	if i == none {
		return none
	}
	s := &h.slots[i]
	if s.wake == h.wakes {
		h.cursor = none
		return none
	}
	s.wake = h.wakes
	h.cursor = s.next
	return i
}

// nextExpired is the oldest packet if its time is over, or none. The caller removes it.
func (h *holdList) nextExpired(now int64) int32 {
	if h.head == none || h.slots[h.head].deadline > now {
		return none
	}
	return h.head
}
