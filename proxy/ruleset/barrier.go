package ruleset

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long Barrier waits where the kernel offers nothing better. A packet is within a chain for microseconds.
const grace = 100 * time.Millisecond

// Barrier returns when every packet that was inside a chain when it was called has left it: all later packets see what
// was committed before. It takes some milliseconds.
//
// Packets run through the chains within an RCU read section, and membarrier(2) waits for all of these to end
// (MEMBARRIER_CMD_GLOBAL is synchronize_rcu). It does not where the kernel keeps CPUs free of ticks (nohz_full), nor on
// one CPU; there, closing a packet socket waits the same way (packet_release calls synchronize_net).
func Barrier() {
	if runtime.NumCPU() > 1 {
		if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno == 0 {
			return
		}
	}
	if fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		_ = unix.Close(fd)
		return
	}
	time.Sleep(grace)
}

const membarrierGlobal = 1 << 0 // MEMBARRIER_CMD_GLOBAL, linux/membarrier.h
