// Package feed serves a generated cluster to agents the way an API server does, as far as client-go's reflectors go:
// streaming lists (sendInitialEvents) and watches, in protobuf. A cluster of a hundred thousand pods needs no memory
// here, and an event leaves within microseconds, so that what is measured is the agent.
package feed

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/firstpacket/firstpacket/bench/world"
)

// Address is where a feed listens, in the namespace of a node.
const Address = "127.0.0.1:6443"

// Kubeconfig is the file that makes an agent ask the feed.
const Kubeconfig = `{"apiVersion": "v1", "kind": "Config", "current-context": "feed",
"clusters": [{"name": "feed", "cluster": {"server": "http://` + Address + `"}}],
"contexts": [{"name": "feed", "context": {"cluster": "feed", "user": ""}}]}
`

// object is what all served objects are.
type object interface {
	runtime.Object
	metav1.Object
}

// initial is the resource version of the generated objects.
const initial = 1

// Feed is a cluster that agents can list and watch.
type Feed struct {
	serializer *protobuf.Serializer
	kinds      map[string]*kind
	server     *http.Server

	mu      sync.Mutex
	version uint64
}

// kind is the objects of one kind: the generated ones, and the events since.
type kind struct {
	objects iter.Seq[object]
	example object
	events  [][]byte
	// versions are those of the events.
	versions []uint64
	// changed is closed, and made anew, with each event.
	changed chan struct{}
}

func newKind[T object](example T, objects iter.Seq[T]) *kind {
	return &kind{example: example, changed: make(chan struct{}), objects: func(yield func(object) bool) {
		for o := range objects {
			if !yield(o) {
				return
			}
		}
	}}
}

// New makes a feed of the world. Serve makes it reachable.
func New(w world.World) *Feed {
	scheme := runtime.NewScheme()
	f := &Feed{serializer: protobuf.NewSerializer(scheme, scheme), version: initial}
	core := metav1.TypeMeta{APIVersion: "v1"}
	typed := func(t metav1.TypeMeta, kind string) metav1.TypeMeta { t.Kind = kind; return t }
	f.kinds = map[string]*kind{
		"/api/v1/namespaces": newKind(&corev1.Namespace{TypeMeta: typed(core, "Namespace")}, w.Namespaces),
		"/api/v1/nodes":      newKind(&corev1.Node{TypeMeta: typed(core, "Node")}, w.Nodes),
		"/api/v1/pods":       newKind(&corev1.Pod{TypeMeta: typed(core, "Pod")}, w.EachPod),
		policies: newKind(&networkingv1.NetworkPolicy{
			TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		}, w.EachPolicy),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") })
	mux.HandleFunc("/", f.serve)
	f.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	return f
}

const policies = "/apis/networking.k8s.io/v1/networkpolicies"

// Serve answers on the listener until Close.
func (f *Feed) Serve(l net.Listener) error {
	if err := f.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the generated cluster: %w", err)
	}
	return nil
}

// Close ends all watches.
func (f *Feed) Close() error { return f.server.Close() }

// Update sends a changed policy to all watches and returns its resource version.
func (f *Feed) Update(p *networkingv1.NetworkPolicy) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	b, err := f.event(watch.Modified, p, f.version)
	if err != nil {
		return 0, err
	}
	k := f.kinds[policies]
	k.events, k.versions = append(k.events, b), append(k.versions, f.version)
	close(k.changed)
	k.changed = make(chan struct{})
	return f.version, nil
}

func (f *Feed) serve(w http.ResponseWriter, r *http.Request) {
	k := f.kinds[r.URL.Path]
	query := r.URL.Query()
	switch {
	case k == nil:
		http.NotFound(w, r)
		return
	case query.Get("watch") == "":
		http.Error(w, "this server lists by streaming only", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf+";stream=watch")
	// The agent is gone when writing fails; it asks again if it is not.
	_ = f.stream(r.Context(), w, k, query.Get("sendInitialEvents") == "true", query.Get("resourceVersion"))
}

// stream writes events until the request ends.
func (f *Feed) stream(ctx context.Context, w http.ResponseWriter, k *kind, list bool, from string) error {
	out := http.NewResponseController(w)
	last, _ := strconv.ParseUint(from, 10, 64) // none and "0" mean any
	if list {
		for o := range k.objects {
			b, err := f.event(watch.Added, o, initial)
			if err != nil {
				return err
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		last = initial
	}
	for {
		f.mu.Lock()
		var news [][]byte
		for i, v := range k.versions {
			if v > last {
				news, last = append(news, k.events[i]), v
			}
		}
		changed := k.changed
		f.mu.Unlock()
		if list {
			b, err := f.bookmark(k, last)
			if err != nil {
				return err
			}
			news, list = append(news, b), false
		}
		for _, b := range news {
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		if err := out.Flush(); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bookmark ends the initial events.
func (f *Feed) bookmark(k *kind, version uint64) ([]byte, error) {
	o := k.example.DeepCopyObject().(object)
	o.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	return f.event(watch.Bookmark, o, version)
}

// event encodes a watch event in its frame: four bytes of length, then the message.
func (f *Feed) event(t watch.EventType, o object, version uint64) ([]byte, error) {
	o.SetResourceVersion(strconv.FormatUint(version, 10))
	raw, err := runtime.Encode(f.serializer, o)
	if err != nil {
		return nil, fmt.Errorf("encode %s/%s: %w", o.GetNamespace(), o.GetName(), err)
	}
	event := metav1.WatchEvent{Type: string(t), Object: runtime.RawExtension{Raw: raw}}
	b := make([]byte, 4+event.Size())
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	if _, err := event.MarshalToSizedBuffer(b[4:]); err != nil {
		return nil, fmt.Errorf("encode an event: %w", err)
	}
	return b, nil
}
