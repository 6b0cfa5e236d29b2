package manifests

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Objects are the objects of a set of manifests, each once.
type Objects struct {
	// List is in the order of kinds, then namespaces, then names.
	List []Located
	// Ignored are the kinds of objects that were not understood, each once.
	Ignored []schema.GroupVersionKind
	// Notes are what is to be said of objects that mean nothing, in the order of files and documents.
	Notes []Note
}

// Located is an object and where it was found.
type Located struct {
	Object Object
	Kind   schema.GroupVersionKind
	File   string
	// Document counts from 1, Line is where the document begins.
	Document, Line int
}

// Load reads manifests once: directories as a Source does, and files whatever their names. Problems name what is wrong;
// the Objects are those of the files without any.
func Load(paths ...string) (Objects, Problems) { return LoadKinds(nil, paths...) }

// LoadKinds is Load for other kinds than Kinds(); nil means those.
func LoadKinds(kinds []Kind, paths ...string) (Objects, Problems) {
	r := newRegistry(kinds)
	all := map[string]*content{}
	var problems Problems
	var ignored []schema.GroupVersionKind
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			problems = append(problems, unreadable(path, err))
			continue
		}
		if info.IsDir() {
			l := newLoader(path, r)
			out := l.load()
			for _, p := range out.problems {
				p.File = filepath.Join(path, p.File)
			}
			problems = append(problems, out.problems...)
			for rel, c := range l.force {
				all[filepath.Join(path, rel)] = c
			}
			continue
		}
		raw, err := readFile(path)
		if err != nil {
			problems = append(problems, unreadable(path, err))
			continue
		}
		c := r.parse(raw, nil)
		problems = append(problems, c.located(path)...)
		if len(c.problems) == 0 {
			all[filepath.Clean(path)] = c
		}
	}
	// Between the paths, too, no object may come twice.
	problems = append(problems, (&loader{}).resolve(all)...)
	problems.sort()

	var objects Objects
	for file, c := range all {
		for _, o := range c.objects {
			objects.List = append(objects.List, Located{o.object, o.kind.GroupVersionKind, file, o.document, o.line})
		}
		ignored = append(ignored, c.ignored...)
		objects.Notes = append(objects.Notes, c.noted(file)...)
	}
	slices.SortStableFunc(objects.Notes, Note.compare)
	slices.SortFunc(objects.List, func(a, b Located) int {
		return cmp.Or(
			strings.Compare(a.Kind.Kind, b.Kind.Kind), strings.Compare(a.Kind.Group, b.Kind.Group),
			strings.Compare(a.Object.GetNamespace(), b.Object.GetNamespace()),
			strings.Compare(a.Object.GetName(), b.Object.GetName()),
		)
	})
	slices.SortFunc(ignored, func(a, b schema.GroupVersionKind) int { return strings.Compare(a.String(), b.String()) })
	objects.Ignored = slices.Compact(ignored)
	return objects, problems
}

// Of returns the objects of one Go type.
func Of[T Object](objects Objects) []T {
	var out []T
	for _, l := range objects.List {
		if o, ok := l.Object.(T); ok {
			out = append(out, o)
		}
	}
	return out
}

// Pods returns the core/v1 Pods.
func (o Objects) Pods() []*corev1.Pod { return Of[*corev1.Pod](o) }

// Nodes returns the core/v1 Nodes.
func (o Objects) Nodes() []*corev1.Node { return Of[*corev1.Node](o) }

// Namespaces returns the core/v1 Namespaces.
func (o Objects) Namespaces() []*corev1.Namespace { return Of[*corev1.Namespace](o) }

// Services returns the core/v1 Services.
func (o Objects) Services() []*corev1.Service { return Of[*corev1.Service](o) }

// NetworkPolicies returns the networking.k8s.io/v1 NetworkPolicies.
func (o Objects) NetworkPolicies() []*networkingv1.NetworkPolicy {
	return Of[*networkingv1.NetworkPolicy](o)
}
