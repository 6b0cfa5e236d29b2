package ruleset

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Features are what the kernel offers.
type Features struct {
	// NativeQueue is true where nftables has its own queue expression (CONFIG_NFT_QUEUE). Otherwise the xtables target
	// NFQUEUE does the same.
	NativeQueue bool
	// Limit is true where nftables can limit rates (CONFIG_NFT_LIMIT). Otherwise Ruleset.Limit does nothing.
	Limit bool
}

// String prints the features as "queue=native limit=yes" or "queue=xt limit=no".
func (f Features) String() string {
	text := "queue=xt"
	if f.NativeQueue {
		text = "queue=native"
	}
	if f.Limit {
		return text + " limit=yes"
	}
	return text + " limit=no"
}

// Probe finds out what the kernel offers, in the network namespace of that file descriptor (0: of the calling thread).
// It asks by making a rule in a table of another name and deleting the table in the same transaction, so nothing of it
// is ever visible. Its errors are ErrPermission, ErrNoTables and ErrNoQueue, and those of the netlink socket.
func Probe(netns int) (Features, error) {
	c, err := connect(netns)
	if err != nil {
		return Features{}, err
	}
	if _, err := c.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
		if errors.Is(err, unix.EINVAL) { // nfnetlink_rcv_msg: nobody has registered for nftables
			return Features{}, fmt.Errorf("%w: %w", ErrNoTables, err)
		}
		return Features{}, explain(err)
	}
	var f Features
	if f.Limit, err = accepts(netns, limitOver(DefaultNoisyRate, noisyBurst)); err != nil {
		return Features{}, err
	}
	if f.NativeQueue, err = accepts(netns, queueNative(0, 1, false)); err != nil || f.NativeQueue {
		return f, err
	}
	xt, err := accepts(netns, queueXt(0, 1, false))
	if err != nil {
		return Features{}, err
	}
	if !xt {
		return Features{}, ErrNoQueue
	}
	return f, nil
}

// accepts tells whether the kernel takes a rule of that one statement.
func accepts(netns int, s stmt) (bool, error) {
	l := &layout{table: &nftables.Table{Name: TableName + "-probe", Family: nftables.TableFamilyINet}}
	c := &nftables.Chain{Name: "probe", Table: l.table}
	t := &tx{l: l}
	t.addTable()
	t.addChain(c)
	t.addRule(c, do(s))
	t.deleteTable()
	once := link{netns: netns}
	defer once.close()
	err := once.do(t.send)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT): // nft_expr_type_get, xt_request_find_target
		return false, nil
	}
	return false, fmt.Errorf("probe for %s: %w", s.text, explain(err))
}
