package ruleset

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// The owner of the table is the one element of the set "owner". Every transaction of an agent deletes its own element
// and adds it again. After another agent has put its element there instead, the deletion fails, and the kernel applies
// nothing of the transaction: an agent that was replaced cannot change anything any more, whether it knows or not.

// claim makes the transaction one of the owner's.
func (t *tx) claim(owner uint32) {
	if owner == 0 {
		return
	}
	s := t.l.set(setOwner)
	t.deleteElements(s, ownerElement(owner))
	t.addElements(s, ownerElement(owner))
}

func ownerElement(owner uint32) []nftables.SetElement {
	return []nftables.SetElement{{Key: host(owner)}}
}

// Owner returns the owner of the table; 0 when it has none. Its error is ErrNotInstalled when there is no table.
func (r *Ruleset) Owner() (uint32, error) {
	var have *nftables.Set
	err := r.reads.do(func(c *nftables.Conn) (err error) {
		have, err = c.GetSetByName(r.layout.table, setOwner)
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		k, err := r.read()
		if err != nil {
			return 0, explain(err)
		}
		if !k.present {
			return 0, ErrNotInstalled
		}
		return 0, nil
	}
	if err != nil {
		return 0, explain(err)
	}
	return r.ownerIn(have)
}

// ownerIn reads the owner out of the set of that name, which may be nil or somebody else's.
func (r *Ruleset) ownerIn(have *nftables.Set) (uint32, error) {
	owner := r.layout.set(setOwner)
	if have == nil || !sameSet(have, owner) {
		return 0, nil
	}
	list, err := r.content(owner)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil // deleted since the reading
	}
	if err != nil {
		return 0, explain(err)
	}
	var found uint32
	for _, e := range list {
		if len(e.Key) != 4 {
			continue
		}
		// Should somebody have put an element beside ours, it is no agent's: agents replace each other.
		if found = binaryutil.NativeEndian.Uint32(e.Key); found == r.cfg.Owner {
			return found, nil
		}
	}
	return found, nil
}

// missing explains why a transaction met something that is not there.
func (r *Ruleset) missing(err error) error {
	if r.cfg.Owner != 0 {
		if owner, ownerErr := r.Owner(); ownerErr == nil && owner != 0 && owner != r.cfg.Owner {
			return fmt.Errorf("%w: %w", ErrSuperseded, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrNotInstalled, err)
}
