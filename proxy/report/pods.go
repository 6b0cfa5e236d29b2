package report

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/firstpacket/firstpacket/proxy/flowread"
	"github.com/firstpacket/firstpacket/proxy/flowstream"
)

// Bounds of events about pods: of one pod, and of the node. Whoever scans ports makes no more events than that; the
// flow log has them all.
const (
	podBurst, nodeBurst = 5, 20
	podEvery, nodeEvery = time.Minute, time.Second
	// remembered is the number of pods, and of events, whose past is known.
	remembered = 1024
)

// PodsConfig says what to tell pods of.
type PodsConfig struct {
	// API says how to reach the API server.
	API *rest.Config
	// Instance is who events are from.
	Instance string
	// Flows has the lines of the flow log.
	Flows *flowstream.Hub
	Log   zerolog.Logger
}

// Pods makes an event on each pod of this node whose policies denied a connection.
type Pods struct {
	cfg    PodsConfig
	client *client
	node   *rate.Limiter
	pods   *simplelru.LRU[string, *rate.Limiter] // by namespace/name
	counts *simplelru.LRU[string, int32]         // of lines, by the name of the event
}

// NewPods makes Pods; Run has them work.
func NewPods(cfg PodsConfig) (*Pods, error) {
	c, err := newClient(cfg.API)
	if err != nil {
		return nil, err
	}
	p := &Pods{cfg: cfg, client: c, node: rate.NewLimiter(rate.Every(nodeEvery), nodeBurst)}
	if p.pods, err = simplelru.NewLRU[string, *rate.Limiter](remembered, nil); err != nil {
		return nil, err
	}
	if p.counts, err = simplelru.NewLRU[string, int32](remembered, nil); err != nil {
		return nil, err
	}
	return p, nil
}

// Run tells of what is denied from now on, until the context ends.
func (p *Pods) Run(ctx context.Context) {
	for ctx.Err() == nil {
		s := p.cfg.Flows.Subscribe(flowstream.Request{Follow: true}, nil)
		p.follow(ctx, s.Lines())
		s.Close() // or it did not keep up
	}
}

func (p *Pods) follow(ctx context.Context, lines <-chan []byte) {
	for {
		select {
		case <-ctx.Done():
			return
		case line, ok := <-lines:
			if !ok {
				return
			}
			r, err := flowread.Parse(line)
			if err != nil {
				continue // the log's own lines are well-formed
			}
			if err := p.tell(ctx, r); err != nil && ctx.Err() == nil {
				p.cfg.Log.Warn().Err(err).Msg("cannot write an event about a denied connection")
			}
		}
	}
}

// tell makes the event of a line, within the limits.
func (p *Pods) tell(ctx context.Context, r *flowread.Record) error {
	pod, peer := &r.Dst, &r.Src
	if r.Direction == "egress" {
		pod, peer = peer, pod
	}
	if r.Verdict != "deny" || pod.Pod == "" || !p.admits(pod.Namespace+"/"+pod.Pod) {
		return nil
	}
	path := "/api/v1/namespaces/" + pod.Namespace + "/pods/" + pod.Pod
	var found metav1.PartialObjectMetadata
	err := p.client.get(ctx, path, &found)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pod %s/%s: %w", pod.Namespace, pod.Pod, err)
	}
	about := corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Pod, UID: found.UID,
	}
	e := newEvent(about, p.cfg.Instance, EventConnectionDenied, actionJudge, note(r, peer))
	count, _ := p.counts.Get(e.Name)
	count++
	p.counts.Add(e.Name, count)
	err = p.client.post(ctx, eventsIn(e.Namespace), e)
	if apierrors.IsAlreadyExists(err) {
		series := map[string]any{"series": map[string]any{
			"count": max(count, 2), "lastObservedTime": metav1.NowMicro(),
		}}
		err = p.client.patch(ctx, eventsIn(e.Namespace)+"/"+e.Name, types.MergePatchType, series)
	}
	if err != nil && !apierrors.IsNotFound(err) { // the namespace, or the event, is gone
		return fmt.Errorf("event about pod %s/%s: %w", pod.Namespace, pod.Pod, err)
	}
	return nil
}

// admits takes a token of the pod and of the node.
func (p *Pods) admits(pod string) bool {
	l, ok := p.pods.Get(pod)
	if !ok {
		l = rate.NewLimiter(rate.Every(podEvery), podBurst)
		p.pods.Add(pod, l)
	}
	return l.Allow() && p.node.Allow()
}

// note is the same for connections of one kind.
func note(r *flowread.Record, peer *flowread.Side) string {
	with := peer.IP.String()
	if peer.Pod != "" {
		with = fmt.Sprintf("pod %s/%s (%s)", peer.Namespace, peer.Pod, peer.IP)
	}
	way := "from " + with
	if r.Direction == "egress" {
		way = "to " + with
	}
	if r.Dst.Port != 0 {
		way += fmt.Sprintf(" at port %d", r.Dst.Port)
	}
	by := ""
	if len(r.Policies) > 0 {
		by = " by " + strings.Join(r.Policies, ", ")
	}
	return shorten(fmt.Sprintf("Denied %s %s %s: %s%s", r.Direction, r.Proto, way, r.Reason, by), 1000)
}
