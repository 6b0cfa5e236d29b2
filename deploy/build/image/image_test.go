package image

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// programs builds the tiny program for two platforms.
func programs(t *testing.T) []string {
	t.Helper()
	var paths []string
	for _, arch := range []string{"amd64", "arm64"} {
		paths = append(paths, compile(t, "linux", arch))
	}
	return paths
}

func compile(t *testing.T, system, arch string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), system+"-"+arch)
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "./testdata/tiny")
	if system == "linux" && arch == "pie" {
		// An executable that the linker makes position-independent has an interpreter on linux, without any C.
		arch = "amd64"
		cmd.Args = slices.Insert(cmd.Args, 2, "-buildmode=pie")
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

var created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestLayout(t *testing.T) {
	options := Options{Programs: programs(t), Version: "v1.2.3", Revision: "abc", Created: created}
	dir := filepath.Join(t.TempDir(), "image")
	var digests [2]v1.Hash
	for i := range digests {
		index, err := Build(options)
		if err != nil {
			t.Fatal(err)
		}
		if digests[i], err = Write(dir, index, options.Version); err != nil {
			t.Fatal(err)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("two builds of the same have the digests %s and %s", digests[0], digests[1])
	}

	l, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	top, err := l.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(top.Manifests) != 1 || top.Manifests[0].Annotations[refName] != "v1.2.3" ||
		top.Manifests[0].Digest != digests[0] {
		t.Fatalf("layout holds %+v", top.Manifests)
	}
	index, err := l.ImageIndex(digests[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 2 {
		t.Fatalf("%d images, want 2", len(manifest.Manifests))
	}
	for i, arch := range []string{"amd64", "arm64"} {
		d := manifest.Manifests[i]
		if d.Platform == nil || d.Platform.String() != "linux/"+arch {
			t.Errorf("image %d is for %v, want linux/%s", i, d.Platform, arch)
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, img, arch, options.Programs[i])
	}
}

func checkImage(t *testing.T, img v1.Image, arch, program string) {
	t.Helper()
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Architecture != arch || cfg.Config.User != "65532:65532" || len(cfg.Config.Entrypoint) != 1 ||
		cfg.Config.Entrypoint[0] != "/firstpacket" || !cfg.Created.Time.Equal(created) ||
		cfg.Config.Labels["org.opencontainers.image.version"] != "v1.2.3" {
		t.Errorf("configuration %+v", cfg)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers (%v), want 1", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = true
		if h.Uid != 0 || h.Gid != 0 || h.Mode&0o022 != 0 || !h.ModTime.Equal(created) {
			t.Errorf("%s: owner %d:%d, mode %o, time %s", h.Name, h.Uid, h.Gid, h.Mode, h.ModTime)
		}
		capability := h.PAXRecords["SCHILY.xattr.security.capability"]
		if h.Name != Program {
			if capability != "" {
				t.Errorf("%s has capabilities", h.Name)
			}
			continue
		}
		if !bytes.Equal(content, want) {
			t.Error("the program is another one")
		}
		// getfattr -e hex -n security.capability, after setcap cap_net_admin+ep.
		const setcap = "\x01\x00\x00\x02\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		if diff := cmp.Diff([]byte(setcap), []byte(capability)); diff != "" {
			t.Errorf("capabilities (-want +got):\n%s", diff)
		}
	}
	for _, name := range []string{Program, SBOM, "run/firstpacket/", "tmp/", "proc/", "var/run/secrets/"} {
		if !found[name] {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestWrongPlatforms(t *testing.T) {
	linux := compile(t, "linux", "amd64")
	for name, list := range map[string][]string{
		"not linux":                   {compile(t, "darwin", "amd64")},
		"two of the same":             {linux, linux},
		"the second one is not linux": {linux, compile(t, "darwin", "arm64")},
	} {
		if _, err := Build(Options{Programs: list}); !errors.Is(err, ErrPlatform) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Build(Options{Programs: []string{compile(t, "linux", "pie")}}); !errors.Is(err, ErrDynamic) {
		t.Errorf("a program that needs a loader: %v", err)
	}
	if _, err := Build(Options{Programs: []string{"image_test.go"}}); err == nil {
		t.Error("a text was taken for a program")
	}
}

func TestInventory(t *testing.T) {
	info := &buildinfo.BuildInfo{
		GoVersion: "go1.26.8", Main: debug.Module{Path: "example.com/main", Version: "(devel)"},
		Deps: []*debug.Module{
			{Path: "example.com/a", Version: "v1.0.0+incompatible"},
			{Path: "example.com/b", Version: "v1", Replace: &debug.Module{Path: "example.com/c", Version: "v2.0.0"}},
		},
	}
	b, err := Inventory(info, "v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		BOMFormat, SpecVersion string
		Metadata               struct {
			Component struct{ Name, Version, PURL string }
		}
		Components []struct{ PURL string }
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.BOMFormat != "CycloneDX" || got.Metadata.Component.PURL != "pkg:golang/example.com/main@v1.2.3" {
		t.Errorf("%+v", got)
	}
	var urls []string
	for _, c := range got.Components {
		urls = append(urls, c.PURL)
	}
	if diff := cmp.Diff([]string{
		"pkg:golang/stdlib@1.26.8", "pkg:golang/example.com/a@v1.0.0%2Bincompatible", "pkg:golang/example.com/c@v2.0.0",
	}, urls); diff != "" {
		t.Errorf("components (-want +got):\n%s", diff)
	}
}
