package source

import (
	"fmt"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/endpoint"
)

// apiPod is a pod as a large cluster has it: replicas of 20 in namespaces of 500.
func apiPod(i int) *corev1.Pod {
	started := metav1.Unix(int64(i), 0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("namespace-%03d", i/500), Name: fmt.Sprintf("deployment-%05d-7d4b9c6f5d-%05x", i/20, i),
			UID: types.UID(fmt.Sprintf("%08x-0000-4000-8000-000000000000", i)), ResourceVersion: fmt.Sprint(i + 1),
			Labels:      map[string]string{"app": fmt.Sprintf("deployment-%05d", i/20), "tier": "backend"},
			Annotations: map[string]string{"large": string(make([]byte, 1024))},
		},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("node-%04d", i%1000),
			Containers: []corev1.Container{{
				Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, StartTime: &started,
			PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)}},
		},
	}
}

// TestBytesPerPod measures what a pod costs from the watch to the endpoint index: at most 560 bytes, of which the index
// has 480 and the queue's memory of keys the rest. Nothing of the API object may stay.
func TestBytesPerPod(t *testing.T) {
	const pods, budget = measuredPods, 560
	q := newQueue(t, Config{})
	s := bare(q, Pods())
	x := endpoint.NewIndex()
	must(t, s.Replace(nil, "1"))
	before := heap()
	for i := range pods {
		must(t, s.Add(apiPod(i)))
	}
	for _, c := range next(t, q).Changes {
		x.SetPod(c.Object.(*cluster.Pod))
	}
	x.Flush()
	perPod := (heap() - before) / pods
	t.Logf("%d bytes per pod", perPod)
	if measured && perPod > budget {
		t.Errorf("%d bytes per pod, more than %d", perPod, budget)
	}
	if got := x.Counts().Addresses; got != pods {
		t.Errorf("%d addresses", got)
	}
	runtime.KeepAlive(s)
}

func heap() int64 {
	var m runtime.MemStats
	for range 3 { // interned values go one collection after their last user
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkStoreUpdate(b *testing.B) {
	q := New(b.Context(), Config{})
	defer q.Close()
	s := bare(q, Pods())
	if err := s.Replace(nil, "1"); err != nil {
		b.Fatal(err)
	}
	p := apiPod(1)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Update(p); err != nil {
			b.Fatal(err)
		}
		if batch, ok := q.take(); !ok || len(batch.Changes) != 1 {
			b.Fatalf("%+v", batch)
		}
	}
}
