// Package kmod finds and loads kernel modules without the tools that do it on a distribution.
//
// Index reads from the module files what depmod would write down: which modules another one needs, and the names that
// the kernel asks for when somebody uses a feature that is not there yet. Load then does the work of modprobe.
package kmod

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Module is one module of an Index.
type Module struct {
	// Path is the file, relative to the folder that the Index was made from.
	Path string `json:"path"`
	// Depends are the modules that must be loaded before.
	Depends []string `json:"depends,omitempty"`
	// Wants are names or aliases that are loaded before if they are there ("softdep=pre:").
	Wants []string `json:"wants,omitempty"`
}

// Index is what is known about a set of modules. All names have underscores, never hyphens.
type Index struct {
	Modules map[string]Module `json:"modules"`
	// Aliases leads from what the kernel asks for to the modules that answer. Patterns, which only buses have, are not
	// kept.
	Aliases map[string][]string `json:"aliases"`
}

// NewIndex reads every module file below root for which keep is true, given its path relative to root, and those that
// they need, wherever they are.
func NewIndex(root string, keep func(name string) bool) (*Index, error) {
	files := make(map[string]string)
	var wanted []string
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || path.Ext(file) != ".ko" {
			return err
		}
		relative, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		name := normal(strings.TrimSuffix(path.Base(relative), ".ko"))
		files[name] = relative
		if keep(relative) {
			wanted = append(wanted, name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for kernel modules: %w", err)
	}
	if len(wanted) == 0 {
		return nil, fmt.Errorf("look for kernel modules: there are none that are not compressed in %s", root)
	}
	x := &Index{Modules: make(map[string]Module), Aliases: make(map[string][]string)}
	for len(wanted) > 0 {
		name := wanted[0]
		wanted = wanted[1:]
		if _, done := x.Modules[name]; done {
			continue
		}
		file, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("look for kernel modules: %s is needed and not there", name)
		}
		if err := x.add(name, root, file); err != nil {
			return nil, fmt.Errorf("read kernel module %s: %w", name, err)
		}
		wanted = append(wanted, x.Modules[name].Depends...)
	}
	return x, nil
}

// add reads one file.
func (x *Index) add(name, root, file string) error {
	info, err := modinfo(filepath.Join(root, file))
	if err != nil {
		return err
	}
	m := Module{Path: file}
	for entry := range strings.SplitSeq(info, "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					m.Depends = append(m.Depends, normal(d))
				}
			}
		case "softdep":
			if before, ok := strings.CutPrefix(value, "pre:"); ok {
				before, _, _ = strings.Cut(before, "post:")
				for w := range strings.FieldsSeq(before) {
					m.Wants = append(m.Wants, normal(w))
				}
			}
		case "alias":
			if !strings.ContainsAny(value, "*?[") {
				x.Aliases[normal(value)] = append(x.Aliases[normal(value)], name)
			}
		}
	}
	x.Modules[name] = m
	return nil
}

// modinfo is the section that MODULE_INFO writes to (linux/moduleparam.h): strings, each ended by a NUL.
func modinfo(file string) (info string, err error) {
	f, err := elf.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	section := f.Section(".modinfo")
	if section == nil {
		return "", errors.New("no section .modinfo")
	}
	b, err := section.Data()
	return string(b), err
}

// Files are the paths of all modules, sorted.
func (x *Index) Files() []string {
	var files []string
	for m := range maps.Values(x.Modules) {
		files = append(files, m.Path)
	}
	slices.Sort(files)
	return files
}

// ErrUnknown says that no module of the index answers to the name.
var ErrUnknown = errors.New("no such kernel module")

// Order lists the modules to load for a name or alias, those that others need before them.
func (x *Index) Order(name string) ([]string, error) {
	names := x.lookup(name)
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrUnknown, name)
	}
	var order []string
	seen := make(map[string]bool)
	var visit func(string)
	visit = func(n string) {
		if seen[n] {
			return
		}
		seen[n] = true
		m := x.Modules[n]
		for _, w := range m.Wants {
			for _, n := range x.lookup(w) {
				visit(n)
			}
		}
		for _, d := range m.Depends {
			visit(d)
		}
		order = append(order, n)
	}
	for _, n := range names {
		visit(n)
	}
	return order, nil
}

func (x *Index) lookup(name string) []string {
	name = normal(name)
	if _, ok := x.Modules[name]; ok {
		return []string{name}
	}
	return x.Aliases[name]
}

// normal is the one way to write a module's name; the kernel itself is not of one mind.
func normal(name string) string { return strings.ReplaceAll(name, "-", "_") }
