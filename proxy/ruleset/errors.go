package ruleset

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// What can be in the way, each with what to do about it. Errors of this package wrap them, and the kernel's errno too
// where there is one.
var (
	ErrPermission = errors.New("no permission to change nftables; run as root or with CAP_NET_ADMIN")
	ErrNoTables   = errors.New("the kernel has no nftables for family inet; enable CONFIG_NF_TABLES and " +
		"CONFIG_NF_TABLES_INET or load module nf_tables")
	ErrNoQueue = errors.New("the kernel has no NFQUEUE for nftables; enable CONFIG_NFT_QUEUE or load module nft_queue " +
		"(or CONFIG_NFT_COMPAT with CONFIG_NETFILTER_XT_TARGET_NFQUEUE)")
	ErrNotInstalled = errors.New("table inet firstpacket is not installed; start the agent")
	ErrForeign      = errors.New("table inet firstpacket was made by another version that cannot be adopted; " +
		"run \"firstpacket cleanup\" and start again")
	ErrSuperseded = errors.New("another agent has taken over this node")
	ErrMaskClash  = errors.New("other software uses bits of the mark mask; choose another one with --mark-mask")
)

// explain puts the sentinel before an errno that has one.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%w: %w", ErrNoTables, err)
	}
	return err
}
