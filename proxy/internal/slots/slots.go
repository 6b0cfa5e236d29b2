// Package slots has a list whose links are numbers: its values lie in one block of memory, without a pointer for a
// collection of garbage to follow, and adding to a list that has its room allocates nothing.
package slots

// None is the number of no slot.
const None = -1

// List is a list of at most limit values in the order of their coming. Make one with New. It belongs to one goroutine
// at a time.
type List[T any] struct {
	limit int
	nodes []node[T] // those in use, and free ones
	count int
	// first and last are the ends of the list, free begins that of free nodes, linked by next.
	first, last, free int32
}

type node[T any] struct {
	value      T
	prev, next int32
}

// New makes a list of up to limit values, and takes the memory for room of them at once; beyond these, Add allocates.
func New[T any](limit, room int) List[T] {
	return List[T]{limit: limit, nodes: make([]node[T], 0, room), first: None, last: None, free: None}
}

// Add takes a slot at the end of the list, or returns None if the list is full. Its value is what the slot held before.
func (l *List[T]) Add() int32 {
	if l.count == l.limit {
		return None
	}
	i := l.free
	if i == None {
		i = int32(len(l.nodes))
		l.nodes = append(l.nodes, node[T]{})
	} else {
		l.free = l.nodes[i].next
	}
	l.link(i)
	l.count++
	return i
}

// Remove takes the slot out of the list, for Add to use again. The slot's Next has to be asked for before.
func (l *List[T]) Remove(slot int32) {
	l.unlink(slot)
	l.nodes[slot].next, l.free = l.free, slot
	l.count--
}

// ToEnd moves the slot to the end of the list.
func (l *List[T]) ToEnd(slot int32) {
	if slot != l.last {
		l.unlink(slot)
		l.link(slot)
	}
}

// At is the value in the slot. The pointer is valid until the next Add.
func (l *List[T]) At(slot int32) *T { return &l.nodes[slot].value }

// First is the slot at the beginning, or None.
func (l *List[T]) First() int32 { return l.first }

// Next is the slot behind one in the list, or None.
func (l *List[T]) Next(slot int32) int32 { return l.nodes[slot].next }

// Len is the number of values in the list.
func (l *List[T]) Len() int { return l.count }

func (l *List[T]) link(i int32) {
	n := &l.nodes[i]
	n.prev, n.next = l.last, None
	if l.last == None {
		l.first = i
	} else {
		l.nodes[l.last].next = i
	}
	l.last = i
}

func (l *List[T]) unlink(i int32) {
	n := &l.nodes[i]
	if n.prev == None {
		l.first = n.next
	} else {
		l.nodes[n.prev].next = n.next
	}
	if n.next == None {
		l.last = n.prev
	} else {
		l.nodes[n.next].prev = n.prev
	}
}
