package deploy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// nodePods stands for the scheduler and the kubelet of a node: it binds and runs pods on the host network, all of the
// program's image, and answers `kubectl exec` and `kubectl logs`. Pods of namespace shop it leaves alone.
type nodePods struct {
	c     *cluster
	n     *node
	root  string
	image imageConfig

	mu      sync.Mutex
	running map[string]*runningPod // by namespace/name
}

// runningPod is a pod whose container was started.
type runningPod struct {
	k      *kubelet
	cmd    *exec.Cmd
	output string // a file
	ended  chan struct{}
	status int // once it has ended
}

// sync does what there is to do. It is called again and again, while something is waited for.
func (p *nodePods) sync(t *testing.T) {
	t.Helper()
	pods, err := p.c.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Namespace == "shop" {
			continue
		}
		switch run := p.pod(pod.Namespace, pod.Name); {
		case pod.DeletionTimestamp != nil:
			p.remove(t, pod, run)
		case pod.Spec.NodeName == "":
			binding := &corev1.Binding{
				ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace},
				Target:     corev1.ObjectReference{Kind: "Node", Name: nodeName},
			}
			err = p.c.client.CoreV1().Pods(pod.Namespace).Bind(t.Context(), binding, metav1.CreateOptions{})
		case run == nil:
			p.start(t, pod)
		default:
			err = p.report(t.Context(), pod, run)
		}
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
	}
}

func (p *nodePods) pod(namespace, name string) *runningPod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running[namespace+"/"+name]
}

func (p *nodePods) start(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	run := &runningPod{
		k:      prepare(t, p.c, pod, p.n.NS(), nodeAddress, p.root, p.image),
		output: filepath.Join(t.TempDir(), "log"), ended: make(chan struct{}),
	}
	f, err := os.Create(run.output)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	run.cmd = run.k.run(t, f)
	go func() {
		defer close(run.ended)
		var exit *exec.ExitError
		if err := run.cmd.Wait(); err != nil && !errors.As(err, &exit) {
			t.Error(err)
		}
		run.status = run.cmd.ProcessState.ExitCode()
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running[pod.Namespace+"/"+pod.Name] = run
}

// remove ends the pod's container as a kubelet does, and then the pod.
func (p *nodePods) remove(t *testing.T, pod *corev1.Pod, run *runningPod) {
	t.Helper()
	if run != nil {
		p.stop(t, run)
	}
	err := p.c.client.CoreV1().Pods(pod.Namespace).Delete(t.Context(), pod.Name,
		metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.running, pod.Namespace+"/"+pod.Name)
}

// stop ends a container, which must end well.
func (p *nodePods) stop(t *testing.T, run *runningPod) {
	t.Helper()
	select {
	case <-run.ended:
		return
	default:
	}
	_ = run.cmd.Process.Signal(unix.SIGTERM) // it may just have ended
	<-run.ended
	if run.status != 0 {
		said, _ := os.ReadFile(run.output)
		t.Errorf("a pod's container ends with status %d and says:\n%s", run.status, said)
	}
}

// stopAll ends what still runs.
func (p *nodePods) stopAll(t *testing.T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, run := range p.running {
		p.stop(t, run)
	}
}

// report tells the API server how a pod is.
func (p *nodePods) report(ctx context.Context, pod *corev1.Pod, run *runningPod) error {
	state := corev1.ContainerStatus{Name: run.k.spec.Name, Image: run.k.spec.Image}
	phase, ready := corev1.PodRunning, false
	select {
	case <-run.ended:
		phase = corev1.PodSucceeded
		if run.status != 0 {
			phase = corev1.PodFailed
		}
		state.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: int32(run.status)}
	default:
		ready = run.k.spec.ReadinessProbe == nil
		if !ready {
			_, err := run.k.exec(ctx, run.k.spec.ReadinessProbe.Exec.Command)
			ready = err == nil
		}
		state.Ready, state.Started = ready, new(true)
		state.State.Running = &corev1.ContainerStateRunning{}
	}
	condition := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse}
	if ready {
		condition.Status = corev1.ConditionTrue
	}
	if pod.Status.Phase == phase && len(pod.Status.Conditions) > 0 &&
		pod.Status.Conditions[0].Status == condition.Status {
		return nil
	}
	condition.LastTransitionTime = metav1.Now()
	pod.Status.Phase, pod.Status.HostIP, pod.Status.PodIP = phase, nodeAddress, nodeAddress
	pod.Status.PodIPs = []corev1.PodIP{{IP: nodeAddress}}
	pod.Status.Conditions = []corev1.PodCondition{condition}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{state}
	_, err := p.c.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

// ServeHTTP answers what the API server asks of a kubelet: /exec/NAMESPACE/POD/CONTAINER, or containerLogs instead.
func (p *nodePods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(parts) != 4 || p.pod(parts[1], parts[2]) == nil {
		http.NotFound(w, r)
		return
	}
	run := p.pod(parts[1], parts[2])
	switch parts[0] {
	case "containerLogs":
		run.logs(w, r)
	case "exec":
		run.exec(w, r)
	default:
		http.NotFound(w, r)
	}
}

// logs sends what the container has written and, if it is to be followed, what it goes on to write.
func (run *runningPod) logs(w http.ResponseWriter, r *http.Request) {
	f, err := os.Open(run.output)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	for {
		if _, err := io.Copy(w, f); err != nil {
			return
		}
		if r.URL.Query().Get("follow") != "true" {
			return
		}
		_ = http.NewResponseController(w).Flush() // who has gone is seen below
		select {
		case <-r.Context().Done():
			return
		case <-run.ended:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// exec runs a command in the container, over the streams of k8s.io/kubelet/pkg/cri/streaming/remotecommand.
func (run *runningPod) exec(w http.ResponseWriter, r *http.Request) {
	if _, err := httpstream.Handshake(r, w, []string{"v4.channel.k8s.io"}); err != nil {
		return
	}
	opened := make(chan httpstream.Stream, 4)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
		opened <- s
		return nil
	})
	if conn == nil {
		return
	}
	defer conn.Close()
	streams := map[string]httpstream.Stream{}
	for streams[corev1.StreamTypeError] == nil || streams[corev1.StreamTypeStdout] == nil ||
		streams[corev1.StreamTypeStderr] == nil {
		select {
		case s := <-opened:
			streams[s.Headers().Get(corev1.StreamType)] = s
		case <-conn.CloseChan():
			return
		}
	}
	out, err := run.k.exec(r.Context(), r.URL.Query()["command"])
	_, _ = streams[corev1.StreamTypeStdout].Write(out)
	result := `{"status":"Success"}`
	if err != nil {
		result = `{"status":"Failure","message":"` + err.Error() + `"}`
	}
	_, _ = io.WriteString(streams[corev1.StreamTypeError], result)
	for _, s := range streams {
		_ = s.Close()
	}
	// Who asked ends the connection once he has it all.
	select {
	case <-conn.CloseChan():
	case <-time.After(5 * time.Second):
	}
}
