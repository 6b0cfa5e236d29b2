package kmod

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// object is an ELF object with nothing but a section of the name, as module files have it.
func object(t *testing.T, section string, entries ...string) []byte {
	t.Helper()
	content := []byte(strings.Join(entries, "\x00") + "\x00")
	names := []byte("\x00" + section + "\x00.shstrtab\x00")
	const header, sectionHeader = 64, 64
	body := uint64(header)
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: body, Size: uint64(len(content))},
		{Name: uint32(len(section) + 2), Type: uint32(elf.SHT_STRTAB), Off: body + uint64(len(content)),
			Size: uint64(len(names))},
	}
	file := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: body + uint64(len(content)+len(names)), Ehsize: header,
		Shentsize: sectionHeader, Shnum: uint16(len(sections)), Shstrndx: 2,
	}
	var b bytes.Buffer
	for _, part := range []any{file, content, names, sections} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// modules are a few of a real kernel's, with what its files say.
func modules(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, entries := range map[string][]string{
		"kernel/net/sctp/sctp.ko":          {"alias=net-pf-2-proto-132", "depends=udp_tunnel,libcrc32c"},
		"kernel/net/ipv4/udp_tunnel.ko":    {"depends="},
		"kernel/net/netfilter/nft-fib.ko":  {"license=GPL", "depends=", "alias=nft-expr-fib"},
		"kernel/lib/libcrc32c.ko":          {"softdep=pre: crc32c missing post: never", "depends="},
		"kernel/crypto/crc32c_generic.ko":  {"alias=crypto-crc32c", "alias=crc32c", "depends="},
		"kernel/drivers/net/e1000/card.ko": {"alias=pci:v00008086d0000100Esv*sd*bc*sc*i*", "depends="},
		"kernel/drivers/net/never.ko":      {"depends=absent"},
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, object(t, ".modinfo", entries...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestIndex(t *testing.T) {
	x, err := NewIndex(modules(t), func(name string) bool {
		return strings.HasPrefix(name, "kernel/net/") || strings.HasPrefix(name, "kernel/crypto/")
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"kernel/crypto/crc32c_generic.ko", "kernel/lib/libcrc32c.ko", "kernel/net/ipv4/udp_tunnel.ko",
		"kernel/net/netfilter/nft-fib.ko", "kernel/net/sctp/sctp.ko",
	}
	if diff := cmp.Diff(want, x.Files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for name, want := range map[string][]string{
		"net-pf-2-proto-132": {"udp_tunnel", "crc32c_generic", "libcrc32c", "sctp"},
		"sctp":               {"udp_tunnel", "crc32c_generic", "libcrc32c", "sctp"},
		"nft-expr-fib":       {"nft_fib"},
		"nft_fib":            {"nft_fib"},
	} {
		got, err := x.Order(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if _, err := x.Order("net-pf-2-proto-132-type-1"); !errors.Is(err, ErrUnknown) {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestIndexRefuses(t *testing.T) {
	root := modules(t)
	for what, keep := range map[string]func(string) bool{
		"nothing to keep":     func(string) bool { return false },
		"a missing neighbour": func(name string) bool { return strings.HasSuffix(name, "never.ko") },
	} {
		if _, err := NewIndex(root, keep); err == nil {
			t.Errorf("%s is no error", what)
		}
	}
	file := filepath.Join(root, "kernel/other.ko")
	for what, content := range map[string][]byte{"not ELF": []byte("text"), "no modinfo": object(t, ".other")} {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := NewIndex(root, func(name string) bool { return name == "kernel/other.ko" }); err == nil {
			t.Errorf("%s is no error", what)
		}
	}
}
