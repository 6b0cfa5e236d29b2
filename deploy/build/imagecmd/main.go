// Command imagecmd writes the container image of firstpacket as an OCI image layout, with the bills of materials beside
// it: `make image`.
package main

import (
	"debug/buildinfo"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/firstpacket/firstpacket/deploy/build/image"
)

func main() {
	var o image.Options
	out := flag.String("o", "", "directory of the image layout, which is replaced")
	flag.StringVar(&o.Version, "version", "unknown", "version of the image")
	flag.StringVar(&o.Revision, "revision", "", "source revision")
	flag.Parse()
	o.Programs = flag.Args()
	if err := run(o, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(o image.Options, out string) error {
	if out == "" || len(o.Programs) == 0 {
		return fmt.Errorf("give -o and the programs")
	}
	// https://reproducible-builds.org/specs/source-date-epoch/
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		epoch = 0
	}
	o.Created = time.Unix(epoch, 0)
	index, err := image.Build(o)
	if err != nil {
		return err
	}
	digest, err := image.Write(out, index, o.Version)
	if err != nil {
		return err
	}
	for _, program := range o.Programs {
		if err := inventory(program, o.Version, out); err != nil {
			return err
		}
	}
	fmt.Printf("built %s: %s\n", out, digest)
	return nil
}

// inventory writes the bill of materials of one program as OUT.ARCHITECTURE.cdx.json.
func inventory(program, version, out string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	sbom, err := image.Inventory(info, version)
	if err != nil {
		return err
	}
	arch := "unknown"
	for _, s := range info.Settings {
		if s.Key == "GOARCH" {
			arch = s.Value
		}
	}
	return os.WriteFile(filepath.Clean(out)+"."+arch+".cdx.json", sbom, 0o644)
}
