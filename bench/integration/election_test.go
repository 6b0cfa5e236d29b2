package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/firstpacket/firstpacket/bench/kube"
	"github.com/firstpacket/firstpacket/bench/kube/kubetest"
	"github.com/firstpacket/firstpacket/policycache/rule"
	"github.com/firstpacket/firstpacket/proxy/report"
)

// leaseDuration is that of the candidates here: a term outlives nobody for longer.
const leaseDuration = 3 * time.Second

// candidate is one that writes while it is elected; severed keeps it from the API server.
type candidate struct {
	*report.Writer
	severed atomic.Bool
	end     func()
}

// severable is the way from a candidate to the API server.
type severable struct {
	*candidate
	next http.RoundTripper
}

var errSevered = errors.New("cut off")

// RoundTrip implements http.RoundTripper.
func (s severable) RoundTrip(r *http.Request) (*http.Response, error) {
	if s.severed.Load() {
		return nil, errSevered
	}
	return s.next.RoundTrip(r)
}

// election is some candidates at a real API server, in a namespace.
type election struct {
	*testing.T
	namespace  string
	config     *rest.Config
	leases     coordination.LeaseInterface
	candidates []*candidate
}

func newElection(t *testing.T, server *kube.Cluster, namespace string, n int) *election {
	t.Parallel()
	client, err := kubernetes.NewForConfig(server.Config())
	if err != nil {
		t.Fatal(err)
	}
	e := &election{
		T: t, namespace: namespace, config: server.Config(), leases: client.CoordinationV1().Leases(namespace),
	}
	for range n {
		e.enter()
	}
	return e
}

// enter starts one more candidate.
func (e *election) enter() *candidate {
	e.Helper()
	c := &candidate{}
	api := rest.CopyConfig(e.config)
	api.Wrap(func(next http.RoundTripper) http.RoundTripper { return severable{c, next} })
	id := fmt.Sprintf("candidate-%d", len(e.candidates))
	var err error
	c.Writer, err = report.New(report.Config{
		API: api, Identity: id, Instance: id, Namespace: e.namespace, LeaseDuration: leaseDuration,
		Policies: func() []*rule.Policy { return nil }, Log: zerolog.Nop(),
	})
	if err != nil {
		e.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { c.Run(ctx) })
	c.end = func() { cancel(); running.Wait() }
	e.Cleanup(c.end)
	e.candidates = append(e.candidates, c)
	return c
}

// wait waits until just one of the candidates, who is not among those ruled out, is elected.
func (e *election) wait(out ...*candidate) *candidate {
	e.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, c := range e.candidates {
			if c.Elected() && !slices.Contains(out, c) {
				return c
			}
		}
	}
	e.Fatal("nobody is elected")
	return nil
}

func (e *election) elected() (n int) {
	for _, c := range e.candidates {
		if c.Elected() {
			n++
		}
	}
	return n
}

// change has somebody else write the Lease.
func (e *election) change(f func(*coordinationv1.LeaseSpec)) {
	e.Helper()
	for {
		l, err := e.leases.Get(e.Context(), report.LeaseName, metav1.GetOptions{})
		if err != nil {
			e.Fatal(err)
		}
		f(&l.Spec)
		if _, err = e.leases.Update(e.Context(), l, metav1.UpdateOptions{}); err == nil {
			return
		}
	}
}

func TestElection(t *testing.T) {
	server := kubetest.Start(t, kube.Options{})
	t.Run("terms", func(t *testing.T) { testTerms(newElection(t, server, metav1.NamespaceDefault, 5)) })
	t.Run("a clock behind", func(t *testing.T) { testClockBehind(newElection(t, server, metav1.NamespaceSystem, 0)) })
}

// testTerms: of candidates that come together one is elected, whatever becomes of it another one follows, and never are
// there two, unless somebody takes the Lease away.
func testTerms(e *election) {
	watched, stop := make(chan int), make(chan struct{})
	go func() {
		most := 0
		for {
			select {
			case <-stop:
				watched <- most
				return
			case <-time.After(time.Millisecond):
				most = max(most, e.elected())
			}
		}
	}()
	first := e.wait()

	// It ends, and gives the Lease back.
	first.end()
	second := e.wait(first)

	// It is cut off: it gives up before anybody else can be elected.
	second.severed.Store(true)
	third := e.wait(first, second)
	if second.Elected() {
		e.Error("who is cut off takes itself for elected")
	}
	second.severed.Store(false)

	close(stop)
	if most := <-watched; most != 1 {
		e.Errorf("%d were elected at a time", most)
	}

	// The Lease is taken from it by somebody whose clock is an hour ahead, and is never heard of again.
	stranger, ahead, long := "stranger", metav1.NewMicroTime(time.Now().Add(time.Hour)), int32(leaseDuration/time.Second)
	e.change(func(s *coordinationv1.LeaseSpec) {
		s.HolderIdentity, s.RenewTime, s.AcquireTime, s.LeaseDurationSeconds = &stranger, &ahead, &ahead, &long
	})
	for deadline := time.Now().Add(patience); third.Elected(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			e.Fatal("who lost the Lease takes itself for elected")
		}
	}
	fourth := e.wait(first)

	// The Lease is deleted.
	if err := e.leases.Delete(e.Context(), report.LeaseName, metav1.DeleteOptions{}); err != nil {
		e.Fatal(err)
	}
	for deadline := time.Now().Add(patience); fourth.Elected(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			e.Fatal("who lost the Lease takes itself for elected")
		}
	}
	e.wait(first)
	l, err := e.leases.Get(e.Context(), report.LeaseName, metav1.GetOptions{})
	if err != nil || l.Spec.HolderIdentity == nil || *l.Spec.HolderIdentity == stranger {
		e.Errorf("%+v, %v", l, err)
	}
}

// testClockBehind: a Lease whose holder's clock is far behind is respected for as long as it is renewed.
func testClockBehind(e *election) {
	holder, behind, long := "old", metav1.NewMicroTime(time.Now().Add(-24*time.Hour)), int32(leaseDuration/time.Second)
	_, err := e.leases.Create(e.Context(), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: report.LeaseName},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: &holder, AcquireTime: &behind, RenewTime: &behind, LeaseDurationSeconds: &long,
		},
	}, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	c := e.enter()
	for i := range 16 { // two of its durations
		if c.Elected() {
			e.Fatal("elected while another one renews the Lease")
		}
		later := metav1.NewMicroTime(behind.Add(time.Duration(i+1) * time.Second))
		e.change(func(s *coordinationv1.LeaseSpec) { s.RenewTime = &later })
		time.Sleep(leaseDuration / 8)
	}
	if e.wait() != c {
		e.Error("not the one that there is")
	}
}
