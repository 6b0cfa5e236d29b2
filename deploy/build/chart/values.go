package chart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Value is one key that a user of the chart can set.
type Value struct {
	// Key is the path to it, with dots.
	Key string
	// Default is its default as JSON, Description what the schema says of it.
	Default, Description string
}

// Values lists the keys of values.yaml that are not maps of further keys, with what the schema says of each. It is an
// error if the two do not have the same keys, or one has no description.
func Values(dir string) ([]Value, error) {
	var schema node
	b, err := os.ReadFile(filepath.Join(dir, "values.schema.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &schema); err != nil {
		return nil, fmt.Errorf("values.schema.json: %w", err)
	}
	if b, err = os.ReadFile(filepath.Join(dir, "values.yaml")); err != nil {
		return nil, err
	}
	var values map[string]any
	if err := yaml.Unmarshal(b, &values); err != nil {
		return nil, fmt.Errorf("values.yaml: %w", err)
	}
	delete(schema.Properties, "global") // every chart has it, none has a default
	return schema.walk("", values)
}

// node is a part of a JSON schema.
type node struct {
	Description string          `json:"description"`
	Properties  map[string]node `json:"properties"`
	Additional  any             `json:"additionalProperties"`
}

func (n *node) walk(prefix string, values map[string]any) ([]Value, error) {
	if n.Additional != false {
		return nil, fmt.Errorf("the schema lets any key stand in %q, misspelt ones too", prefix)
	}
	for key := range values {
		if _, ok := n.Properties[key]; !ok {
			return nil, fmt.Errorf("%s%s is in values.yaml and not in the schema", prefix, key)
		}
	}
	var found []Value
	for _, key := range slices.Sorted(maps.Keys(n.Properties)) {
		value, ok := values[key]
		if !ok {
			return nil, fmt.Errorf("%s%s is in the schema and not in values.yaml", prefix, key)
		}
		p := n.Properties[key]
		if p.Description == "" {
			return nil, fmt.Errorf("%s%s has no description in the schema", prefix, key)
		}
		if inner, ok := value.(map[string]any); ok && p.Properties != nil {
			below, err := p.walk(prefix+key+".", inner)
			if err != nil {
				return nil, err
			}
			found = append(found, below...)
			continue
		}
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		found = append(found, Value{Key: prefix + key, Default: string(text), Description: p.Description})
	}
	return found, nil
}

// Readme is the chart's README.md.
func Readme(dir string) ([]byte, error) {
	values, err := Values(dir)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString(`# The firstpacket chart

Runs the agent on every node. How to install, upgrade and uninstall is told in docs/install.md and docs/operations.md.

| value | default | meaning |
|---|---|---|
`)
	cell := strings.NewReplacer("|", `\|`)
	for _, v := range values {
		fmt.Fprintf(&out, "| `%s` | `%s` | %s |\n", v.Key, cell.Replace(v.Default), cell.Replace(v.Description))
	}
	return out.Bytes(), nil
}
