package manifests

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkReload measures the reading of a directory of 1,000 policies after one has changed, up to the new snapshot.
func BenchmarkReload(b *testing.B) {
	policy := func(name int, version int) string {
		return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: p%d}\n"+
			"spec: {podSelector: {matchLabels: {app: a%d}}, ingress: [{from: [{podSelector: {}}], ports: [{port: %d}]}]}\n",
			name, name, version%60000+1)
	}
	const policies = 1000
	for layout, files := range map[string]int{"1000 files": policies, "1 file": 1} {
		b.Run(layout, func(b *testing.B) {
			dir := b.TempDir()
			writeAll := func(file, version int) {
				var docs []string
				for i := file; i < policies; i += files {
					v := 0
					if i == file {
						v = version
					}
					docs = append(docs, policy(i, v))
				}
				write(b, dir, filepath.Join("d", fmt.Sprintf("p%d.yaml", file)), strings.Join(docs, "---\n"))
			}
			for f := range files {
				writeAll(f, 0)
			}
			l := newLoader(dir, newRegistry(nil))
			l.load()
			at, _ := l.snapshot(1, nil)
			version := 0
			for b.Loop() {
				b.StopTimer()
				version++
				writeAll(0, version)
				b.StartTimer()
				if out := l.load(); len(out.problems) > 0 {
					b.Fatal(out.problems.Err())
				}
				next, n := l.snapshot(at.number+1, at)
				if n != policies || len(changedObjects(at, next)) != 1 {
					b.Fatalf("%d objects, changed %v", n, changedObjects(at, next))
				}
				at = next
			}
		})
	}
}

func changedObjects(a, b *snapshot) []string {
	var changed []string
	for gvk, objects := range b.objects {
		for key, o := range objects {
			if a.objects[gvk][key] != o {
				changed = append(changed, key)
			}
		}
	}
	return changed
}
