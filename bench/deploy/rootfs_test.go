package deploy

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/binary"
)

// descriptor and the like are the parts of the OCI image specification that a runtime needs.
type descriptor struct {
	Digest   string
	Platform struct{ Architecture string }
}

type manifest struct {
	Manifests, Layers []descriptor
	Config            descriptor
}

type imageConfig struct {
	Config struct {
		User       string
		Entrypoint []string
	}
}

// unpackImage builds the image of the program under test, and unpacks it as a container runtime would.
func unpackImage(t *testing.T) (root string, cfg imageConfig) {
	t.Helper()
	program, err := binary.Path()
	if err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "image")
	cmd := exec.CommandContext(t.Context(), "go", "run", "./imagecmd", "-o", layout, "-version", "test", program)
	cmd.Dir = "../../deploy/build"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the image: %v\n%s", err, out)
	}
	var index, platforms, image manifest
	read(t, filepath.Join(layout, "index.json"), &index)
	read(t, blob(layout, index.Manifests[0]), &platforms)
	if len(platforms.Manifests) != 1 || platforms.Manifests[0].Platform.Architecture != runtime.GOARCH {
		t.Fatalf("images for %+v", platforms.Manifests)
	}
	read(t, blob(layout, platforms.Manifests[0]), &image)
	read(t, blob(layout, image.Config), &cfg)
	root = filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, layer := range image.Layers {
		if err := unpack(blob(layout, layer), root); err != nil {
			t.Fatal(err)
		}
	}
	return root, cfg
}

func blob(layout string, d descriptor) string {
	return filepath.Join(layout, "blobs", strings.Replace(d.Digest, ":", "/", 1))
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

func unpack(layer, root string) error {
	f, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = unpackOne(archive, h, root)
		}
		if err != nil {
			return err
		}
	}
}

func unpackOne(content io.Reader, h *tar.Header, root string) error {
	path := filepath.Join(root, filepath.Clean("/"+h.Name))
	if h.Typeflag == tar.TypeDir {
		return os.Mkdir(path, h.FileInfo().Mode())
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, h.FileInfo().Mode())
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, content); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !mapped(65532) {
			continue // in a user namespace, capabilities of files are another thing
		}
		if err := unix.Setxattr(path, name, []byte(value), 0); err != nil {
			return &os.PathError{Op: "setxattr " + name, Path: path, Err: err}
		}
	}
	return nil
}
