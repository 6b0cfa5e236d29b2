package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Via is the way through the API server to an agent.
type Via string

const (
	// PortForward has the node's kubelet connect to the agent's loopback address. It needs the right to create
	// pods/portforward in the agents' namespace.
	PortForward Via = "port-forward"
	// Proxy has the API server connect to the node's address. The agents must serve there and expose their page, and
	// whoever asks needs the right to get pods/proxy in their namespace.
	Proxy Via = "proxy"
)

// Cluster finds the agents of a cluster. The zero value of all but Config is the chart's.
type Cluster struct {
	Config *rest.Config
	// Namespace of the agents' pods; empty is DefaultNamespace.
	Namespace string
	// Via is the way to them; empty is PortForward.
	Via Via
}

const (
	// DefaultNamespace is where the documentation has the chart installed.
	DefaultNamespace = "firstpacket"
	// selector finds the pods that the chart makes.
	selector    = "app.kubernetes.io/name=firstpacket"
	defaultPort = "9099"
)

// ErrNoAgents is returned when a cluster has no running agent where they were looked for.
var ErrNoAgents = errors.New("no running agent")

// Find lists the agents that run, one for each node, sorted by node. They are to be closed.
func (c *Cluster) Find(ctx context.Context) ([]*Agent, error) {
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return nil, fmt.Errorf("agents: %w", err)
	}
	namespace := cmp.Or(c.Namespace, DefaultNamespace)
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("agents of namespace %s: %w", namespace, err)
	}
	newest := map[string]*corev1.Pod{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Status.Phase != corev1.PodRunning || pod.DeletionTimestamp != nil {
			continue
		}
		// Two agents overlap on a node while it is updated; the older one is idle.
		old := newest[pod.Spec.NodeName]
		if old == nil || old.CreationTimestamp.Before(&pod.CreationTimestamp) {
			newest[pod.Spec.NodeName] = pod
		}
	}
	if len(newest) == 0 {
		return nil, fmt.Errorf("%w in namespace %s has the label %s", ErrNoAgents, namespace, selector)
	}
	agents := make([]*Agent, 0, len(newest))
	for node, pod := range newest {
		a, err := c.agent(client, pod)
		if err != nil {
			for _, opened := range agents {
				opened.Close()
			}
			return nil, fmt.Errorf("agent of %s: %w", node, err)
		}
		a.Name, a.Pod = node, pod.Namespace+"/"+pod.Name
		agents = append(agents, a)
	}
	slices.SortFunc(agents, func(a, b *Agent) int { return strings.Compare(a.Name, b.Name) })
	return agents, nil
}

// ErrNoNode is returned for a pod that no node runs.
var ErrNoNode = errors.New("has no node yet")

// NodeOf is the node that a pod runs on. It needs the right to get pods in the namespace.
func (c *Cluster) NodeOf(ctx context.Context, namespace, name string) (string, error) {
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return "", fmt.Errorf("pod %s/%s: %w", namespace, name, err)
	}
	pod, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("node of pod %s/%s: %w", namespace, name, err)
	}
	if pod.Spec.NodeName == "" {
		return "", fmt.Errorf("pod %s/%s %w", namespace, name, ErrNoNode)
	}
	return pod.Spec.NodeName, nil
}

func (c *Cluster) agent(client kubernetes.Interface, pod *corev1.Pod) (*Agent, error) {
	port := httpPort(pod)
	request := client.CoreV1().RESTClient().Get().Resource("pods").Namespace(pod.Namespace)
	if c.Via != Proxy {
		f := &forwarder{config: c.Config, url: request.Name(pod.Name).SubResource("portforward").URL(), port: port}
		transport := &http.Transport{DialContext: f.dial}
		return &Agent{
			base: url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", port)}, client: &http.Client{Transport: transport},
			close: func() { transport.CloseIdleConnections(); f.close() },
		}, nil
	}
	httpClient, err := rest.HTTPClientFor(c.Config)
	if err != nil {
		return nil, err
	}
	// A context bounds each question; answers that go on are wanted.
	httpClient.Timeout = 0
	base := request.Name("http:" + pod.Name + ":" + port).SubResource("proxy").URL()
	return &Agent{base: *base, client: httpClient, close: func() {}}, nil
}

// httpPort is the port of the agent's --http-address.
func httpPort(pod *corev1.Pod) string {
	for _, c := range pod.Spec.Containers {
		for _, arg := range c.Args {
			addresses, ok := strings.CutPrefix(arg, "--http-address=")
			if !ok {
				continue
			}
			for address := range strings.SplitSeq(addresses, ",") {
				if at := strings.LastIndexByte(address, ':'); at >= 0 && !strings.HasPrefix(address, "unix:") {
					return address[at+1:]
				}
			}
		}
	}
	return defaultPort
}
