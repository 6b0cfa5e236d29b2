package kube

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server answers as an API server would, for pods only: streamed lists in protobuf, or plain lists in JSON.
type server struct {
	*httptest.Server
	streams bool
	events  chan metav1.WatchEvent

	mu     sync.Mutex
	accept map[string]string // what was accepted, by path
	lists  int               // plain lists given
	fail   int               // HTTP status for everything, 0 for none
}

func newServer(t *testing.T, streams bool) *server {
	s := &server{streams: streams, events: make(chan metav1.WatchEvent, 10), accept: map[string]string{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.handle))
	t.Cleanup(s.CloseClientConnections)
	t.Cleanup(s.Close)
	return s
}

func (s *server) handle(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.accept[r.URL.Path] = r.Header.Get("Accept")
	fail := s.fail
	s.mu.Unlock()
	q := r.URL.Query()
	switch {
	case fail != 0:
		writeStatus(w, fail, "no")
	case r.URL.Path == "/version":
		_, _ = w.Write([]byte("{}"))
	case r.URL.Path != "/api/v1/pods":
		writeStatus(w, http.StatusNotFound, "no such resource")
	case q.Get("watch") != "true":
		s.mu.Lock()
		s.lists++
		s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		list := corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "5"}, Items: []corev1.Pod{*pod("a", "1")}}
		list.Kind, list.APIVersion = "PodList", "v1"
		_ = json.NewEncoder(w).Encode(list)
	case q.Get("sendInitialEvents") == "true" && !s.streams:
		writeStatus(w, http.StatusUnprocessableEntity, "sendInitialEvents is forbidden")
	default:
		s.watch(w, r, q.Get("sendInitialEvents") == "true")
	}
}

func writeStatus(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	st := metav1.Status{Status: metav1.StatusFailure, Code: int32(code), Message: message}
	switch code {
	case http.StatusForbidden:
		st.Reason = metav1.StatusReasonForbidden
	case http.StatusNotFound:
		st.Reason = metav1.StatusReasonNotFound
	}
	st.Kind, st.APIVersion = "Status", "v1"
	_ = json.NewEncoder(w).Encode(st)
}

// watch sends frames of protobuf, as the real server does when it is accepted.
func (s *server) watch(w http.ResponseWriter, r *http.Request, initial bool) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		panic(err)
	}
	codecs := serializer.NewCodecFactory(scheme)
	objects := codecs.EncoderForVersion(protobuf.NewSerializer(scheme, scheme), corev1.SchemeGroupVersion)
	envelopes := protobuf.NewRawSerializer(scheme, scheme)
	frames := protobuf.LengthDelimitedFramer.NewFrameWriter(w)
	w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
	send := func(t watch.EventType, o runtime.Object) {
		raw, err := runtime.Encode(objects, o)
		if err != nil {
			panic(err)
		}
		e := &metav1.WatchEvent{Type: string(t), Object: runtime.RawExtension{Raw: raw}}
		if err := envelopes.Encode(e, frames); err != nil {
			return
		}
		w.(http.Flusher).Flush()
	}
	w.(http.Flusher).Flush()
	if initial {
		send(watch.Added, pod("a", "1"))
		end := pod("", "5")
		end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		send(watch.Bookmark, end)
	}
	for {
		select {
		case e := <-s.events:
			send(watch.EventType(e.Type), e.Object.Object)
		case <-r.Context().Done():
			return
		}
	}
}

func pod(name, version string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, ResourceVersion: version},
		Status:     corev1.PodStatus{PodIP: "10.0.0.1"},
	}
}

func TestListAndWatch(t *testing.T) {
	for name, streams := range map[string]bool{"streamed list": true, "plain list": false} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, streams)
			src := NewForConfig(&rest.Config{Host: s.URL}, "firstpacket-test")
			q := source.New(t.Context(), source.Config{
				OnError: func(kind source.Health, err error) { t.Errorf("%s: %v", kind.Kind, err) },
			})
			defer q.Close()
			if err := q.Add(src, source.Pods()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			b, err := q.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(b.Changes) != 1 || b.Changes[0].Key != "shop/a" || b.Versions["Pod"] != "5" {
				t.Fatalf("first batch: %+v", b)
			}
			if p := b.Changes[0].Object.(*cluster.Pod); len(p.Addrs) != 1 {
				t.Errorf("pod: %+v", p)
			}
			s.events <- metav1.WatchEvent{Type: "ADDED", Object: runtime.RawExtension{Object: pod("b", "6")}}
			s.events <- metav1.WatchEvent{Type: "DELETED", Object: runtime.RawExtension{Object: pod("a", "7")}}
			known := map[string]bool{"shop/a": true}
			for b.Versions["Pod"] != "7" {
				if b, err = q.Next(ctx); err != nil {
					t.Fatal(err)
				}
				for _, c := range b.Changes {
					known[c.Key] = c.Object != nil
				}
			}
			if known["shop/a"] || !known["shop/b"] {
				t.Errorf("known: %v", known)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if plain := s.lists > 0; plain == streams {
				t.Errorf("%d plain lists", s.lists)
			}
			if got := s.accept["/api/v1/pods"]; !strings.HasPrefix(got, runtime.ContentTypeProtobuf) {
				t.Errorf("accepted: %s", got)
			}
		})
	}
}

func TestWaitReachable(t *testing.T) {
	s := newServer(t, true)
	src := NewForConfig(&rest.Config{Host: s.URL}, "")
	if err := src.WaitReachable(t.Context(), 5*time.Second); err != nil {
		t.Error(err)
	}
	if src.Host() != s.URL {
		t.Error(src.Host())
	}

	s.mu.Lock()
	s.fail = http.StatusForbidden
	s.mu.Unlock()
	err := src.WaitReachable(t.Context(), 100*time.Millisecond)
	if !errors.Is(err, ErrUnreachable) || !apierrors.IsForbidden(err) {
		t.Errorf("forbidden: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := src.WaitReachable(ended, time.Second); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}

	s.Close()
	err = src.WaitReachable(t.Context(), 100*time.Millisecond)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("closed server: %v", err)
	}
}

func TestNew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	config := `{"apiVersion":"v1","kind":"Config","current-context":"a","clusters":[
		{"name":"a","cluster":{"server":"https://a.example:6443"}},{"name":"b","cluster":{"server":"https://b.example"}}],
		"contexts":[{"name":"a","context":{"cluster":"a"}},{"name":"b","context":{"cluster":"b"}}]}`
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for context, want := range map[string]string{"": "https://a.example:6443", "b": "https://b.example"} {
		s, err := New(Config{Kubeconfig: file, Context: context})
		if err != nil || s.Host() != want {
			t.Errorf("context %q: %v, want %s", context, err, want)
		}
	}
	if _, err := New(Config{Kubeconfig: file + ".missing"}); err == nil {
		t.Error("a missing kubeconfig is none")
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := New(Config{}); !errors.Is(err, rest.ErrNotInCluster) {
		t.Errorf("outside a cluster: %v", err)
	}
	s := NewForConfig(&rest.Config{Host: "https://a.example"}, "")
	if _, err := s.ListerWatcher(source.Kind{Name: "Other"}); err == nil {
		t.Error("a kind without types is served")
	}
}
