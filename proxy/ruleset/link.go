package ruleset

import (
	"fmt"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
)

// link is a connection for one operation after the other, which stays open between them. When a netfilter socket is
// closed, the kernel waits until whatever transactions have removed is destroyed, 10 ms and more, and has everybody's
// next transaction wait for that (linux/net/netfilter/nf_tables_api.c, nft_rcv_nl_event).
type link struct {
	netns int

	mu     sync.Mutex
	conn   *nftables.Conn // nil until it is needed
	socket *netlink.Conn  // conn's
}

// do lends the connection to f. If f fails, the connection ends: errors stick to it, and what is left in its socket
// must not be read as the next answer.
func (l *link) do(f func(*nftables.Conn) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		conn, err := connect(l.netns, nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
			l.socket = c
			return nil
		}))
		if err != nil {
			return err
		}
		l.conn = conn
	}
	err := l.socket.SetDeadline(time.Now().Add(patience))
	if err == nil {
		err = f(l.conn)
	}
	if err != nil {
		l.end()
	}
	return err
}

// close ends the connection; another do opens a new one.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end()
}

func (l *link) end() {
	if l.conn != nil {
		_ = l.conn.CloseLasting()
		l.conn, l.socket = nil, nil
	}
}

// connect opens a connection, for one operation unless the options say otherwise.
func connect(netns int, options ...nftables.ConnOption) (*nftables.Conn, error) {
	options = append(options, nftables.WithNetNSFd(netns), nftables.WithSockOptions(func(c *netlink.Conn) error {
		if err := c.SetReadBuffer(socketBuffer); err != nil {
			return err
		}
		if err := c.SetWriteBuffer(socketBuffer); err != nil {
			return err
		}
		return c.SetDeadline(time.Now().Add(patience))
	}))
	c, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return c, nil
}
