package manifests

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxFile bounds the size of one manifest in bytes: 10,000 pods take a tenth of it.
const maxFile = 256 << 20

// tree is what a walk over a directory found. Paths are relative to the directory, with slashes.
type tree struct {
	files map[string]fs.FileInfo
	// folders are the folders whose entries matter, the root included, with what identifies them: a folder that
	// was removed and made again is another one. Folders that hold the targets of linked files have absolute paths.
	folders map[string]inode
	// unreadable are files and folders that are there, or may be there, but cannot be looked at.
	unreadable map[string]error
}

type inode struct{ dev, ino uint64 }

// walk lists the manifests below root. Links are followed; a folder that is reached twice is read once.
func walk(root string) *tree {
	t := &tree{files: map[string]fs.FileInfo{}, folders: map[string]inode{}, unreadable: map[string]error{}}
	t.folder(root, ".", map[inode]bool{})
	return t
}

func (t *tree) folder(root, rel string, seen map[inode]bool) {
	abs := filepath.Join(root, filepath.FromSlash(rel))
	info, err := os.Stat(abs)
	if err != nil {
		t.missing(rel, err)
		return
	}
	id := inodeOf(info)
	if seen[id] {
		return
	}
	seen[id] = true
	t.folders[abs] = id
	entries, err := os.ReadDir(abs)
	if err != nil {
		t.missing(rel, err)
		return
	}
	for _, e := range entries {
		if hidden(e.Name()) {
			continue
		}
		t.entry(root, relJoin(rel, e.Name()), e, seen)
	}
}

func (t *tree) entry(root, rel string, e fs.DirEntry, seen map[inode]bool) {
	abs := filepath.Join(root, filepath.FromSlash(rel))
	linked := e.Type()&fs.ModeSymlink != 0
	if !linked && !e.IsDir() && !isManifest(rel[strings.LastIndexByte(rel, '/')+1:]) {
		return
	}
	info, err := os.Stat(abs)
	switch {
	case err != nil && linked && errors.Is(err, fs.ErrNotExist) && isManifest(e.Name()):
		// A link into nowhere says that there should be something.
		t.unreadable[rel] = err
	case err != nil:
		if isManifest(e.Name()) || e.IsDir() {
			t.missing(rel, err)
		}
	case info.IsDir():
		t.folder(root, rel, seen)
	case !isManifest(e.Name()):
	case !info.Mode().IsRegular():
		t.unreadable[rel] = errors.New("is not a regular file")
	default:
		t.files[rel] = info
		if linked {
			t.follow(abs)
		}
	}
}

// follow adds the folder of a link's target: a change of the target is not seen in the folder of the link.
func (t *tree) follow(abs string) {
	target, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return
	}
	dir := filepath.Dir(target)
	if info, err := os.Stat(dir); err == nil {
		t.folders[dir] = inodeOf(info)
	}
}

// missing notes what cannot be looked at. What vanished during the walk is simply gone, except the root: the absence of
// everything is rather a mount that failed than a wish.
func (t *tree) missing(rel string, err error) {
	if rel == "." || !errors.Is(err, fs.ErrNotExist) {
		t.unreadable[rel] = err
	}
}

// covers tells whether a file that was not found may still exist, because it or a folder above it cannot be looked at.
func (t *tree) covers(rel string) bool {
	for ; ; rel = rel[:strings.LastIndexByte(rel, '/')] {
		if _, ok := t.unreadable[rel]; ok {
			return true
		}
		if !strings.Contains(rel, "/") {
			_, ok := t.unreadable["."]
			return ok
		}
	}
}

func relJoin(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

func inodeOf(info fs.FileInfo) inode {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return inode{st.Dev, st.Ino}
	}
	return inode{}
}

// stamp tells versions of a file apart without reading it.
type stamp struct {
	inode
	size         int64
	mtime, ctime int64
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{inode: inodeOf(info), size: info.Size(), mtime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.ctime = st.Ctim.Nano()
	}
	return s
}

// tick is longer than the granularity of file times: a file that was changed less than this before it was read may
// change again without another stamp.
const tick = 100 * time.Millisecond

// settled tells whether any later change of a file with this stamp, read at the given time, gives another stamp.
func (s stamp) settled(read time.Time) bool {
	return read.UnixNano()-max(s.ctime, s.mtime) > int64(tick)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxFile {
		return nil, fmt.Errorf("is larger than %d MiB", maxFile>>20)
	}
	return raw, nil
}

// Digest returns the digest of the manifests in a directory: of their names and bytes, as a Source reports it for what
// it has in force.
func Digest(dir string) (string, error) {
	t := walk(dir)
	for _, rel := range slices.Sorted(maps.Keys(t.unreadable)) {
		return "", fmt.Errorf("manifests: %s: %w", filepath.Join(dir, rel), t.unreadable[rel])
	}
	sums := make(map[string][sha256.Size]byte, len(t.files))
	for rel := range t.files {
		raw, err := readFile(filepath.Join(dir, filepath.FromSlash(rel)))
		if err != nil {
			return "", fmt.Errorf("manifests: %w", err)
		}
		sums[rel] = sha256.Sum256(raw)
	}
	return digest(sums), nil
}

func digest(sums map[string][sha256.Size]byte) string {
	h := sha256.New()
	var size [8]byte
	for _, rel := range slices.Sorted(maps.Keys(sums)) {
		binary.BigEndian.PutUint64(size[:], uint64(len(rel)))
		sum := sums[rel]
		h.Write(size[:])
		h.Write([]byte(rel))
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}
