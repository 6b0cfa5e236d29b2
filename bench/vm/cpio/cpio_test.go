package cpio

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// file is an entry as read does it.
type file struct {
	Name, Content string
	Mode          uint32
	Major, Minor  uint32
}

// read takes an archive apart in the way of init/initramfs.c: a header of 110 bytes, the name, padding to 4, the
// content, padding to 4.
func read(t *testing.T, b []byte) []file {
	t.Helper()
	var all []file
	take := func(n int) string {
		s := string(b[:n])
		b = b[n:]
		return s
	}
	length := len(b)
	for {
		if take(6) != "070701" {
			t.Fatal("no magic")
		}
		var fields [13]uint32
		for i := range fields {
			v, err := strconv.ParseUint(take(8), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			fields[i] = uint32(v)
		}
		name := strings.TrimSuffix(take(int(fields[11])), "\x00")
		take(-(length - len(b)) & 3)
		f := file{Name: name, Content: take(int(fields[6])), Mode: fields[1], Major: fields[9], Minor: fields[10]}
		take(-(length - len(b)) & 3)
		if name == trailer {
			if len(b) != 0 {
				t.Errorf("%d bytes after the end", len(b))
			}
			return all
		}
		all = append(all, f)
	}
}

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, f := range []file{
		{Name: "init", Content: "12345", Mode: Regular | 0o755},
		{Name: "dev/console", Mode: CharDev | 0o600, Major: 5, Minor: 1},
		{Name: "sbin/modprobe", Content: "/init", Mode: Symlink | 0o777},
		{Name: "sbin", Mode: Directory | 0o755},
		{Name: "a/b/c", Mode: Regular | 0o644},
	} {
		h := Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Content)), Major: f.Major, Minor: f.Minor}
		if err := w.Add(h, strings.NewReader(f.Content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	want := []file{
		{Name: "init", Content: "12345", Mode: Regular | 0o755},
		{Name: "dev", Mode: Directory | 0o755},
		{Name: "dev/console", Mode: CharDev | 0o600, Major: 5, Minor: 1},
		{Name: "sbin", Mode: Directory | 0o755},
		{Name: "sbin/modprobe", Content: "/init", Mode: Symlink | 0o777},
		{Name: "a", Mode: Directory | 0o755},
		{Name: "a/b", Mode: Directory | 0o755},
		{Name: "a/b/c", Mode: Regular | 0o644},
	}
	if diff := cmp.Diff(want, read(t, b.Bytes())); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
	if err := w.Add(Header{Name: "late", Mode: Regular}, nil); !errors.Is(err, errClosed) {
		t.Errorf("after the end: %v", err)
	}
}

func TestRefused(t *testing.T) {
	for name, h := range map[string]Header{
		"absolute":   {Name: "/etc"},
		"above":      {Name: "../etc"},
		"not clean":  {Name: "a//b"},
		"no name":    {},
		"too large":  {Name: "a", Size: maxSize + 1},
		"no content": {Name: "a", Size: 1},
	} {
		if err := NewWriter(io.Discard).Add(h, nil); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	err := NewWriter(io.Discard).Add(Header{Name: "short", Size: 3}, strings.NewReader("12"))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("too little content: %v", err)
	}
}
