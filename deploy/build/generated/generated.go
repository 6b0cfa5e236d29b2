// Package generated makes the files of the repository that are made from others: copies that Helm wants inside the
// chart, the chart's README, and the plain manifests.
package generated

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/deploy/build/chart"
)

// Chart is the chart's directory, Full the values of a release with everything switched on; both below deploy.
const (
	Chart = "chart/firstpacket"
	Full  = "build/testdata/full.values.yaml"
)

// copies are files that the chart needs inside of it.
var copies = map[string]string{
	"alerts/firstpacket.yaml":      Chart + "/files/alerts.yaml",
	"dashboards/firstpacket.json":  Chart + "/files/dashboard.json",
	"crds/" + alphaNetworkPolicies: Chart + "/files/alphanetworkpolicy.yaml",
}

const alphaNetworkPolicies = "net.alpha.kubernetes.io_networkpolicys.yaml"

const header = "# Made from deploy/chart/firstpacket by `make generate`.\n"

// File is one generated file, by its path below deploy.
type File struct {
	Path    string
	Content []byte
}

// Copies are to be written before Rendered is called: templates read them.
func Copies(deploy string) ([]File, error) {
	var files []File
	for from, to := range copies {
		b, err := os.ReadFile(filepath.Join(deploy, from))
		if err != nil {
			return nil, err
		}
		files = append(files, File{to, b})
	}
	readme, err := chart.Readme(filepath.Join(deploy, Chart))
	if err != nil {
		return nil, err
	}
	return append(files, File{Chart + "/README.md", readme}), nil
}

// Rendered are the plain manifests: those to install, and those of a release with everything switched on, by which
// reviewers and tests see what templates make of it.
func Rendered(deploy string) ([]File, error) {
	b, err := os.ReadFile(filepath.Join(deploy, Full))
	if err != nil {
		return nil, err
	}
	var full map[string]any
	if err := yaml.Unmarshal(b, &full); err != nil {
		return nil, fmt.Errorf("%s: %w", Full, err)
	}
	plain := map[string]any{"namespace": map[string]any{"create": true}}
	var files []File
	for path, values := range map[string]map[string]any{
		"firstpacket.yaml":         plain,
		"build/testdata/full.yaml": full,
	} {
		out, err := chart.Render(filepath.Join(deploy, Chart), values,
			chart.Release{Name: "firstpacket", Namespace: "firstpacket", Service: "kubectl"})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		files = append(files, File{path, append([]byte(header), out...)})
	}
	return files, nil
}

// Write makes all of them anew and returns how many had to change.
func Write(deploy string) (changed int, err error) {
	for _, step := range []func(string) ([]File, error){Copies, Rendered} {
		files, err := step(deploy)
		if err != nil {
			return changed, err
		}
		for _, f := range files {
			path := filepath.Join(deploy, f.Path)
			if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, f.Content) {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return changed, err
			}
			if err := os.WriteFile(path, f.Content, 0o644); err != nil {
				return changed, err
			}
			changed++
		}
	}
	return changed, nil
}
