// Package image builds the container image of a static program without a container engine: an OCI image layout on disk
// with an image for each platform, of one layer over nothing.
//
// Builds are reproducible: the same programs and options give the same digests.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Paths and user inside the image. The chart's DaemonSet relies on them.
const (
	Program = "firstpacket"
	SBOM    = "usr/share/sbom/firstpacket.cdx.json"
	// User is the nonroot user of most minimal images.
	User = "65532:65532"
)

// ErrPlatform is wrapped by Build's error if a program was not built for linux, or two for the same platform.
var ErrPlatform = errors.New("wrong platform")

// ErrDynamic is wrapped by Build's error if a program needs a loader, which the image does not have.
var ErrDynamic = errors.New("not a static program: build it with CGO_ENABLED=0")

// Options describe an image.
type Options struct {
	// Programs are the paths of static linux programs, one for each architecture. Their Go build information says which.
	Programs []string
	// Version is the image's version label and its name in the layout.
	Version string
	// Revision is the source revision that it was built from, for the label; it may be empty.
	Revision string
	// Created is the time that the image claims to be made at.
	Created time.Time
}

// Build makes an index with an image for each program.
func Build(o Options) (v1.ImageIndex, error) {
	slices.Sort(o.Programs)
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	index = mutate.Annotations(index, o.labels()).(v1.ImageIndex)
	seen := map[string]bool{}
	for _, path := range o.Programs {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("build information of %s: %w", path, err)
		}
		platform := v1.Platform{OS: setting(info, "GOOS"), Architecture: setting(info, "GOARCH")}
		if platform.OS != "linux" || seen[platform.Architecture] {
			return nil, fmt.Errorf("%s is for %s, once more or not linux: %w", path, platform, ErrPlatform)
		}
		seen[platform.Architecture] = true
		img, err := o.image(path, info, platform)
		if err != nil {
			return nil, fmt.Errorf("image for %s: %w", platform, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &platform},
		})
	}
	return index, nil
}

// refName names an image in a layout (OCI image specification, annotations).
const refName = "org.opencontainers.image.ref.name"

// Write replaces what is at dir by an OCI image layout with the index in it, and returns the digest of the index.
func Write(dir string, index v1.ImageIndex, version string) (v1.Hash, error) {
	if err := os.RemoveAll(dir); err != nil {
		return v1.Hash{}, err
	}
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("write layout: %w", err)
	}
	err = l.AppendIndex(index, layout.WithAnnotations(map[string]string{refName: version}))
	if err != nil {
		return v1.Hash{}, fmt.Errorf("write layout: %w", err)
	}
	return index.Digest()
}

func (o *Options) labels() map[string]string {
	labels := map[string]string{
		"org.opencontainers.image.title":       "firstpacket",
		"org.opencontainers.image.description": "Enforces Kubernetes network policy on the first packet of every connection",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     o.Version,
		"org.opencontainers.image.created":     o.Created.UTC().Format(time.RFC3339),
	}
	if o.Revision != "" {
		labels["org.opencontainers.image.revision"] = o.Revision
	}
	return labels
}

func (o *Options) image(path string, info *buildinfo.BuildInfo, platform v1.Platform) (v1.Image, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := static(program); err != nil {
		return nil, err
	}
	sbom, err := Inventory(info, o.Version)
	if err != nil {
		return nil, err
	}
	layer, err := o.layer(program, sbom)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	created := v1.Time{Time: o.Created.UTC()}
	if img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: platform.OS, Architecture: platform.Architecture, Created: created, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: []string{"/" + Program}, User: User, WorkingDir: "/", Labels: o.labels(),
		},
	}); err != nil {
		return nil, err
	}
	if img, err = mutate.Append(img, mutate.Addendum{
		Layer: layer, MediaType: types.OCILayer,
		History: v1.History{Created: created, CreatedBy: "firstpacket deploy/build/image"},
	}); err != nil {
		return nil, err
	}
	return mutate.Annotations(img, o.labels()).(v1.Image), nil
}

// layer is the only layer. It has the directories that things are mounted on: a container whose root is read-only
// cannot make them.
func (o *Options) layer(program, sbom []byte) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"dev/", "etc/", "proc/", "run/", "run/firstpacket/", "sys/", "tmp/", "usr/", "usr/share/",
		"usr/share/sbom/", "var/", "var/run/", "var/run/secrets/"} {
		if err := w.WriteHeader(o.header(tar.TypeDir, dir, 0o755, 0)); err != nil {
			return nil, err
		}
	}
	executable := o.header(tar.TypeReg, Program, 0o755, len(program))
	executable.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(netAdmin())}
	for _, f := range []struct {
		header  *tar.Header
		content []byte
	}{{executable, program}, {o.header(tar.TypeReg, SBOM, 0o644, len(sbom)), sbom}} {
		if err := w.WriteHeader(f.header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestCompression),
		tarball.WithCompressedCaching)
}

func (o *Options) header(kind byte, name string, mode int64, size int) *tar.Header {
	return &tar.Header{
		Typeflag: kind, Name: name, Mode: mode, Size: int64(size), ModTime: o.Created.UTC(), Format: tar.FormatPAX,
	}
}

// netAdmin is the extended attribute security.capability for cap_net_admin+ep: struct vfs_cap_data of
// linux/capability.h, VFS_CAP_REVISION_2 with VFS_CAP_FLAGS_EFFECTIVE, then the permitted and the inheritable set, low
// words first. Without it, a program that is started by another user than root has no capabilities, whatever the
// container is given.
func netAdmin() []byte {
	const (
		revision2    = 0x02000000
		effective    = 0x000001
		capNetAdmin  = 12
		wordsPerSets = 4
	)
	b := binary.LittleEndian.AppendUint32(nil, revision2|effective)
	for _, word := range [wordsPerSets]uint32{1 << capNetAdmin, 0, 0, 0} {
		b = binary.LittleEndian.AppendUint32(b, word)
	}
	return b
}

func static(program []byte) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return ErrDynamic
		}
	}
	return nil
}

func setting(info *buildinfo.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}
