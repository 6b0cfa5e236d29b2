package ruleset

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watcher hears of every change to the table, whoever makes it. What the rules themselves learn is no change.
type Watcher struct {
	nl     *netlink.Conn
	closed atomic.Bool
}

// Watch opens a watcher in the network namespace of the file descriptor; 0 means the one of the calling thread.
func Watch(netns int) (*Watcher, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("watch the ruleset: %w", err)
	}
	if err := nl.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		_ = nl.Close()
		return nil, fmt.Errorf("watch the ruleset: %w", explain(err))
	}
	return &Watcher{nl: nl}, nil
}

// Run calls changed after each transaction that touched the table, on the calling goroutine, until Close. Where the
// kernel had no room for its messages, so that nobody knows how many transactions there were, it calls lost.
func (w *Watcher) Run(changed, lost func()) error {
	touched := false
	for {
		messages, err := w.nl.Receive()
		switch {
		case err != nil && w.closed.Load():
			return nil
		case errors.Is(err, unix.ENOBUFS):
			touched = false
			lost()
			continue
		case err != nil:
			return fmt.Errorf("watch the ruleset: %w", err)
		}
		for _, m := range messages {
			switch {
			case m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES:
			case m.Header.Type&0xff == unix.NFT_MSG_NEWGEN: // ends a transaction
				if touched {
					changed()
				}
				touched = false
			default:
				touched = touched || ofTable(m.Data)
			}
		}
	}
}

// Close ends Run.
func (w *Watcher) Close() {
	w.closed.Store(true)
	_ = w.nl.Close()
}

// ofTable tells whether a notification is about the table. Its name is attribute 1 in messages on tables, chains,
// rules, sets, elements and objects (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, …).
func ofTable(message []byte) bool {
	const genmsg, tableName = 4, 1
	if len(message) < genmsg || message[0] != unix.NFPROTO_INET {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(message[genmsg:])
	if err != nil {
		return false
	}
	for ad.Next() {
		if ad.Type() == tableName {
			return ad.String() == TableName
		}
	}
	return false
}
