// Package cpio writes archives that the kernel unpacks as its first file system.
//
// The format is "newc", the only one that initramfs takes (Documentation/driver-api/early-userspace/buffer-format.rst).
package cpio

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Types of files, to be or-ed with the permission bits in Header.Mode (struct stat's st_mode, inode(7)).
const (
	Directory = 0o040000
	Regular   = 0o100000
	Symlink   = 0o120000
	CharDev   = 0o020000
)

// Header describes a file that follows it.
type Header struct {
	// Name is relative to the root and has no leading slash. Folders above it that are not in the archive yet are added,
	// open to everyone for reading.
	Name string
	// Mode is one of the types above and permission bits.
	Mode uint32
	// Size is the number of bytes of the content: a link's is the path it leads to.
	Size int64
	// Major and Minor are the number of a device.
	Major, Minor uint32
}

// trailer is the name of the entry that ends an archive.
const trailer = "TRAILER!!!"

// maxSize is what eight hexadecimal digits hold.
const maxSize = 1<<32 - 1

// Writer writes one archive. Its zero value is of no use.
type Writer struct {
	w       io.Writer
	inode   uint32
	written int64
	folders map[string]bool
}

// NewWriter makes a writer that appends to w. Close ends the archive but not w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, folders: map[string]bool{".": true}}
}

// Add writes the file, with content of exactly h.Size bytes.
func (w *Writer) Add(h Header, content io.Reader) error {
	if h.Name == "" || path.Clean(h.Name) != h.Name || path.IsAbs(h.Name) || strings.HasPrefix(h.Name, "../") {
		return fmt.Errorf("cpio: %q is not a path below the root", h.Name)
	}
	if h.Size < 0 || h.Size > maxSize {
		return fmt.Errorf("cpio: %s has %d bytes, more than the format can say", h.Name, h.Size)
	}
	if err := w.folder(path.Dir(h.Name)); err != nil {
		return err
	}
	if h.Mode&Directory != 0 && w.folders[h.Name] {
		return nil
	}
	w.folders[h.Name] = h.Mode&^0o7777 == Directory
	return w.entry(h, content)
}

// folder adds the folder and those above it, once.
func (w *Writer) folder(name string) error {
	if w.folders[name] {
		return nil
	}
	if err := w.folder(path.Dir(name)); err != nil {
		return err
	}
	w.folders[name] = true
	return w.entry(Header{Name: name, Mode: Directory | 0o755}, nil)
}

func (w *Writer) entry(h Header, content io.Reader) error {
	w.inode++ // two entries of one inode would be hard links
	links := int64(1)
	if h.Mode&Directory != 0 {
		links = 2
	}
	// Magic, then thirteen numbers: inode, mode, uid, gid, links, mtime, size, device, special device, length of the
	// name with its NUL, and a checksum that this variant leaves 0.
	var head strings.Builder
	head.WriteString("070701")
	for _, v := range []int64{
		int64(w.inode), int64(h.Mode), 0, 0, links, 0, h.Size, 0, 0, int64(h.Major), int64(h.Minor),
		int64(len(h.Name)) + 1, 0,
	} {
		fmt.Fprintf(&head, "%08X", v)
	}
	head.WriteString(h.Name + "\x00")
	if err := w.write(strings.NewReader(head.String())); err != nil {
		return fmt.Errorf("cpio: write %s: %w", h.Name, err)
	}
	if err := w.pad(); err != nil {
		return fmt.Errorf("cpio: write %s: %w", h.Name, err)
	}
	if h.Size > 0 {
		before := w.written
		if content == nil {
			return fmt.Errorf("cpio: write %s: no content", h.Name)
		}
		if err := w.write(io.LimitReader(content, h.Size)); err != nil {
			return fmt.Errorf("cpio: write %s: %w", h.Name, err)
		}
		if w.written-before != h.Size {
			return fmt.Errorf("cpio: write %s: %w", h.Name, io.ErrUnexpectedEOF)
		}
	}
	if err := w.pad(); err != nil {
		return fmt.Errorf("cpio: write %s: %w", h.Name, err)
	}
	return nil
}

func (w *Writer) write(content io.Reader) error {
	n, err := io.Copy(w.w, content)
	w.written += n
	return err
}

// pad brings the length to a multiple of four.
func (w *Writer) pad() error {
	return w.write(strings.NewReader("\x00\x00\x00"[:-w.written&3]))
}

// errClosed is the answer to everything after Close.
var errClosed = errors.New("closed")

// failing refuses what is written.
type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errClosed }

// Close writes the end of the archive.
func (w *Writer) Close() error {
	err := w.entry(Header{Name: trailer}, nil)
	w.w = failing{}
	return err
}
