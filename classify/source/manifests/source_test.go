package manifests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"github.com/firstpacket/firstpacket/classify/source"
)

func TestFollowEdits(t *testing.T) {
	dir := t.TempDir()
	write(t, dir,
		"pods.yaml", podYAML("web")+"---\n"+podYAML("db"),
		"node.yaml", "{apiVersion: v1, kind: Node, metadata: {name: n1}}")
	f := follow(t, dir)
	f.await()
	f.expect("Pod shop/web", "Pod shop/db", "Node n1")

	// Only the object that changed is told, and a comment changes none.
	write(t, dir, "pods.yaml", "# edited\n---\n"+podYAML("web", "spec: {nodeName: n1}")+"---\n# same\n"+podYAML("db"))
	f.await()
	f.expectTold("+Pod shop/web")

	write(t, dir, "policy.yaml", policyYAML("{podSelector: {}}"))
	f.await()
	f.expectTold("+NetworkPolicy default/p")

	must(t, os.Remove(filepath.Join(dir, "pods.yaml")))
	f.await()
	f.expectTold("-Pod shop/db", "-Pod shop/web")
	f.expect("Node n1", "NetworkPolicy default/p")

	// A file that moves takes its objects along.
	must(t, os.Rename(filepath.Join(dir, "node.yaml"), filepath.Join(dir, "renamed.yaml")))
	f.await()
	f.expectTold()
}

func TestFollowFolders(t *testing.T) {
	dir := t.TempDir()
	f := follow(t, dir)
	f.await()
	f.expect()

	write(t, dir, "a/b/c/pods.yaml", podYAML("web"))
	f.await()
	f.expect("Pod shop/web")
	write(t, dir, "a/b/c/pods.yaml", podYAML("db"))
	f.await()
	f.expect("Pod shop/db")
	must(t, os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "z")))
	f.await()
	f.expectTold()
	write(t, dir, "z/b/more.yaml", podYAML("more"))
	f.await()
	f.expect("Pod shop/db", "Pod shop/more")
	must(t, os.RemoveAll(filepath.Join(dir, "z")))
	f.await()
	f.expect()
	// The same folder again is another one to the kernel.
	write(t, dir, "z/b/more.yaml", podYAML("again"))
	f.await()
	f.expect("Pod shop/again")
}

func TestFollowInvalidThenMended(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", podYAML("a1")+"---\n"+podYAML("a2"), "b.yaml", podYAML("b1"))
	f := follow(t, dir)
	f.await()
	before := f.src.State()

	// One document is bad: the whole file stays as it was, the other file goes on.
	write(t, dir, "a.yaml", podYAML("a3")+"---\n"+podYAML("a2", "spec: {nodeNam: x}"))
	s := f.awaitState(withProblem("a.yaml: document 2 (line 5): Pod shop/a2: spec.nodeNam: unknown field"))
	if s.Number != before.Number || s.Digest != before.Digest {
		t.Fatalf("a bad file made a new state: %+v", s)
	}
	write(t, dir, "b.yaml", podYAML("b2"))
	s = f.awaitState(func(s State) bool { return s.Number > before.Number })
	f.awaitDigest(s.Digest)
	f.expect("Pod shop/a1", "Pod shop/a2", "Pod shop/b2")

	write(t, dir, "a.yaml", "")
	f.awaitState(withProblem("a.yaml: is empty"))
	write(t, dir, "a.yaml", podYAML("a2"))
	f.await()
	f.expect("Pod shop/a2", "Pod shop/b2")
	if s := f.src.State(); s.Problems != nil {
		t.Fatalf("problems remain: %v", s.Problems.Err())
	}
}

func TestFollowDuplicates(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b.yaml", podYAML("web"))
	f := follow(t, dir)
	f.await()

	// The new file loses, whatever its name.
	write(t, dir, "a.yaml", podYAML("web", "spec: {nodeName: other}")+"---\n"+podYAML("db"))
	f.awaitState(withProblem("a.yaml: document 1 (line 1): Pod shop/web: is in b.yaml: document 1 (line 1) too"))
	must(t, os.Remove(filepath.Join(dir, "b.yaml")))
	f.await()
	f.expect("Pod shop/web", "Pod shop/db")
	if f.src.State().Problems != nil {
		t.Fatal(f.src.State().Problems.Err())
	}
}

func TestFollowConfigMapMount(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "..2026_1/pods.yaml", podYAML("web"))
	must(t, os.Symlink("..2026_1", filepath.Join(dir, "..data")))
	must(t, os.Symlink("..data/pods.yaml", filepath.Join(dir, "pods.yaml")))
	f := follow(t, dir)
	f.await()
	f.expect("Pod shop/web")

	// As the kubelet does: a new folder, a new link, the link put in place by rename.
	write(t, dir, "..2026_2/pods.yaml", podYAML("db"))
	must(t, os.Symlink("..2026_2", filepath.Join(dir, "..data_tmp")))
	must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	must(t, os.RemoveAll(filepath.Join(dir, "..2026_1")))
	f.await()
	f.expect("Pod shop/db")
}

func TestFollowLinkedFile(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	write(t, elsewhere, "pods.yaml", podYAML("web"))
	must(t, os.Symlink(filepath.Join(elsewhere, "pods.yaml"), filepath.Join(dir, "pods.yaml")))
	f := follow(t, dir)
	f.await()
	write(t, elsewhere, "pods.yaml", podYAML("db"))
	f.await()
	f.expect("Pod shop/db")
}

func TestFollowAtomicRenameAndEditorFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "pods.yaml", podYAML("web"))
	f := follow(t, dir)
	f.await()
	before := f.src.State().Number
	for _, name := range []string{".pods.yaml.swp", "pods.yaml~", "4913", ".#pods.yaml", "#pods.yaml#"} {
		write(t, dir, name, "junk")
	}
	write(t, dir, ".pods.yaml.tmp", podYAML("db"))
	must(t, os.Rename(filepath.Join(dir, ".pods.yaml.tmp"), filepath.Join(dir, "pods.yaml")))
	f.await()
	f.expect("Pod shop/db")
	if s := f.src.State(); s.Problems != nil || s.Number != before+1 {
		t.Errorf("state: %+v %v", s, s.Problems.Err())
	}
}

func TestFollowBurst(t *testing.T) {
	dir := t.TempDir()
	f := follow(t, dir)
	var want []string
	for i := range 200 {
		write(t, dir, fmt.Sprintf("d%d/p%d.yaml", i%7, i), podYAML(fmt.Sprint("p", i)))
		if i%3 == 0 {
			must(t, os.Remove(filepath.Join(dir, fmt.Sprintf("d%d/p%d.yaml", i%7, i))))
			continue
		}
		want = append(want, fmt.Sprint("Pod shop/p", i))
	}
	f.await()
	f.expect(want...)
}

func TestFollowDirectoryThatVanishes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	write(t, dir, "pods.yaml", podYAML("web"))
	f := follow(t, dir)
	f.await()

	// A whole directory that is gone is rather a failed mount than a wish.
	must(t, os.Rename(dir, dir+".away"))
	f.awaitState(withProblem(".: cannot be read: no such file or directory"))
	f.expect("Pod shop/web")
	write(t, dir, "pods.yaml", podYAML("db"))
	f.await()
	f.expect("Pod shop/db")
	write(t, dir, "pods.yaml", podYAML("back"))
	f.await()
	f.expect("Pod shop/back")
}

func TestUnknownKindsAreNamedOnce(t *testing.T) {
	dir := t.TempDir()
	deployment := "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}\n"
	write(t, dir, "a.yaml", deployment+"---\n"+deployment+"---\n"+podYAML("web"))
	f := follow(t, dir)
	if s := f.awaitState(func(State) bool { return true }); fmt.Sprint(s.Ignored) != "[apps/v1, Kind=Deployment]" {
		t.Errorf("ignored: %v", s.Ignored)
	}
	f.await()
	f.expect("Pod shop/web")
	write(t, dir, "b.yaml", deployment)
	if s := f.awaitState(func(s State) bool { return s.Files == 2 }); s.Ignored != nil {
		t.Errorf("named again: %v", s.Ignored)
	}
}

func TestKindsAreExtensible(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "cm.yaml", "{apiVersion: example.com/v1, kind: Widget, metadata: {name: w}}")
	widget := Kind{
		GroupVersionKind: schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Widget"}, Resource: "widgets",
		New: func() Object { return &metav1.PartialObjectMetadata{} },
	}
	objects, problems := LoadKinds(append(Kinds(), widget), dir)
	if names(objects) != "Widget w" || problems != nil {
		t.Errorf("%s %v", names(objects), problems.Err())
	}
}

func TestOpenFails(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "missing"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	dir := t.TempDir()
	write(t, dir, "f.yaml", podYAML("a"))
	if _, err := Open(filepath.Join(dir, "f.yaml"), Options{}); err == nil {
		t.Error("a file was opened as a directory")
	}
}

func TestListerWatcher(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "pods.yaml", podYAML("web"))
	src, err := Open(dir, Options{})
	must(t, err)
	defer src.Close()
	served, err := src.ListerWatcher(source.Pods())
	must(t, err)
	lw := cache.ToListerWatcherWithContext(served)
	future := metav1.ListOptions{ResourceVersion: "99"}
	if _, err := lw.WatchWithContext(t.Context(), future); !apierrors.IsResourceExpired(err) {
		t.Errorf("watch from the future: %v", err)
	}
	w, err := lw.WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: "1"})
	must(t, err)

	// Two steps while nobody receives are one, and only the bookmark raises the version.
	for i, content := range []string{podYAML("db"), podYAML("db", "spec: {nodeName: n1}")} {
		write(t, dir, "pods.yaml", content)
		for src.State().Number < uint64(i+2) {
			time.Sleep(time.Millisecond)
		}
	}
	var got []string
	for e := range w.ResultChan() {
		o := e.Object.(Object)
		got = append(got, fmt.Sprint(e.Type, " ", o.GetName(), "@", o.GetResourceVersion()))
		if o.GetResourceVersion() == "3" {
			break
		}
	}
	w.Stop()
	w.Stop()
	joined := strings.Join(got, ", ")
	if !strings.HasPrefix(joined, "DELETED web@1, ADDED db@1, BOOKMARK @") || !strings.HasSuffix(joined, "BOOKMARK @3") {
		t.Errorf("events: %s", joined)
	}
	l, err := lw.ListWithContext(t.Context(), metav1.ListOptions{})
	must(t, err)
	if list := l.(*metav1.List); list.ResourceVersion != "3" || len(list.Items) != 1 {
		t.Errorf("list: %+v", list)
	}
	if _, ok := src.DigestOf("nonsense"); ok {
		t.Error("a digest of nonsense")
	}
	must(t, src.Close())
	if _, err := lw.ListWithContext(t.Context(), metav1.ListOptions{}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := lw.WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: "3"}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	other := source.Kind{Name: "Other", GVR: schema.GroupVersionResource{Resource: "others"}, Example: &runtime.Unknown{}}
	if _, err := src.ListerWatcher(other); err == nil {
		t.Error("an unknown kind is served")
	}
}

func TestUnchangedFilesAreNotReadAgain(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", podYAML("a"), "b.yaml", podYAML("b"))
	old := time.Now().Add(-time.Hour)
	l := newLoader(dir, newRegistry(nil))
	l.load()
	first := l.force["a.yaml"]
	must(t, os.Chtimes(filepath.Join(dir, "b.yaml"), old, old))
	write(t, dir, "b.yaml", podYAML("c"))
	l.load()
	if l.force["a.yaml"] != first {
		t.Error("an unchanged file was parsed again")
	}
	if l.force["b.yaml"].objects[0].object.GetName() != "c" {
		t.Error("a changed file was not read")
	}
}
