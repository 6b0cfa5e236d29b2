// Package chart renders and checks the Helm chart with Helm's own library, so that nobody needs Helm to build, test or
// install firstpacket.
package chart

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/yaml"
)

// Release is what a chart is rendered for.
type Release struct {
	Name, Namespace string
	// Service is who applies the result: "Helm", or "kubectl" for plain manifests, which then do not claim to be
	// managed by Helm.
	Service string
}

// Render renders the chart in a directory. The objects are in an order in which they can be applied; comments stay.
func Render(dir string, values map[string]any, r Release) ([]byte, error) {
	c, err := loader.LoadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("load chart: %w", err)
	}
	options := common.ReleaseOptions{Name: r.Name, Namespace: r.Namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(c, values, options, common.DefaultCapabilities)
	if err != nil {
		return nil, fmt.Errorf("values of the chart: %w", err)
	}
	release, ok := all["Release"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the library's Release is %T", all["Release"])
	}
	release["Service"] = r.Service
	files, err := engine.Engine{Strict: true}.RenderWithContext(context.Background(), c, all)
	if err != nil {
		return nil, fmt.Errorf("render chart: %w", err)
	}
	var objects []object
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if base := path.Base(name); strings.HasPrefix(base, "_") || base == "NOTES.txt" {
			continue
		}
		found, err := split(files[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		objects = append(objects, found...)
	}
	slices.SortStableFunc(objects, func(a, b object) int { return cmp.Compare(rank(a.kind), rank(b.kind)) })
	var out bytes.Buffer
	for i, o := range objects {
		if i > 0 {
			out.WriteString("---\n")
		}
		out.WriteString(o.text)
		out.WriteByte('\n')
	}
	return out.Bytes(), nil
}

// object is one document of a rendered template.
type object struct{ kind, text string }

func split(file string) ([]object, error) {
	var objects []object
	for text := range strings.SplitSeq("\n"+file, "\n---\n") {
		text = strings.Trim(text, "\n")
		var head struct {
			Kind string `json:"kind"`
		}
		if err := yaml.Unmarshal([]byte(text), &head); err != nil {
			return nil, err
		}
		if head.Kind == "" {
			if strings.TrimSpace(text) != "" {
				return nil, errors.New("a document is no object: " + text)
			}
			continue
		}
		objects = append(objects, object{head.Kind, trimLines(text)})
	}
	return objects, nil
}

// trimLines takes the blanks off the ends of lines, where templates leave them.
func trimLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}

// rank orders kinds by what has to be there before what.
func rank(kind string) int {
	return slices.Index([]string{ // kinds that are not listed come first: -1
		"Namespace", "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role",
		"RoleBinding", "ConfigMap", "Service", "DaemonSet", "ServiceMonitor", "PodMonitor", "PrometheusRule",
	}, kind)
}

// Lint says what `helm lint --strict` has to say about the chart.
func Lint(dir string, values map[string]any) []string {
	var said []string
	for _, m := range lint.RunAll(dir, values, "firstpacket").Messages {
		said = append(said, m.Error())
	}
	return said
}
