package agent

import (
	"bufio"
	"debug/elf"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// dropProgramPages takes the program's own code and constants out of the process's memory: most of what ran once, to
// take the first state in, does not run again. They stay in the page cache, from where what is used comes back page by
// page. Nothing is lost by it: in a program that is linked to fixed addresses, nobody has ever written to these
// mappings. Failure is none, it only saves memory.
func dropProgramPages() {
	name, err := os.Readlink("/proc/self/exe")
	if err != nil || !fixed(name) {
		return
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var from, to, offset, inode uint64
		var mode, device, path string
		// address-address mode offset device inode path (proc_pid_maps(5))
		n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s %x %s %d %s", &from, &to, &mode, &offset, &device, &inode, &path)
		if n == 7 && path == name && strings.HasPrefix(mode, "r-") && strings.HasSuffix(mode, "p") {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_DONTNEED)
		}
	}
}

// fixed tells whether a program has its place from the linker. One that the loader may put anywhere has constants that
// were written when it did.
func fixed(name string) bool {
	f, err := elf.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	return f.Type == elf.ET_EXEC
}
