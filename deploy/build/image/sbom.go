package image

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/CycloneDX/cyclonedx-go"
)

// Inventory is the program's software bill of materials, CycloneDX as JSON: the modules that the linker put into it
// and the Go release it was built with, from the build information that Go leaves in every program.
func Inventory(info *buildinfo.BuildInfo, version string) ([]byte, error) {
	main := component(&info.Main)
	main.Type, main.Version = cyclonedx.ComponentTypeApplication, version
	main.PackageURL, main.BOMRef = packageURL(info.Main.Path, version), "main"
	toolchain := cyclonedx.Component{
		BOMRef: "stdlib", Type: cyclonedx.ComponentTypeLibrary, Name: "stdlib",
		Version: info.GoVersion, PackageURL: packageURL("stdlib", strings.TrimPrefix(info.GoVersion, "go")),
	}
	components := []cyclonedx.Component{toolchain}
	needs := []string{toolchain.BOMRef}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := component(m)
		components = append(components, c)
		needs = append(needs, c.BOMRef)
	}
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{Component: &main}
	bom.Components = &components
	// Build information does not say which module needs which.
	bom.Dependencies = &[]cyclonedx.Dependency{{Ref: main.BOMRef, Dependencies: &needs}}
	var out bytes.Buffer
	if err := cyclonedx.NewBOMEncoder(&out, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		return nil, fmt.Errorf("bill of materials: %w", err)
	}
	return out.Bytes(), nil
}

func component(m *debug.Module) cyclonedx.Component {
	url := packageURL(m.Path, m.Version)
	return cyclonedx.Component{
		BOMRef: url, Type: cyclonedx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: url,
	}
}

// packageURL follows the purl specification for type golang.
func packageURL(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}
