package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firstpacket/firstpacket/bench/lab/binary"
)

// Users who may ask agents, with the rights that docs/security.md lists for either way.
const (
	forwardUser = "forwarder"
	proxyUser   = "proxy-user"
)

// readers gives the users their rights.
func readers(t *testing.T, c *cluster) {
	t.Helper()
	for user, rule := range map[string]rbacv1.PolicyRule{
		forwardUser: {APIGroups: []string{""}, Resources: []string{"pods/portforward"}, Verbs: []string{"get", "create"}},
		proxyUser:   {APIGroups: []string{""}, Resources: []string{"pods/proxy"}, Verbs: []string{"get"}},
	} {
		role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}}, rule,
		}}
		binding := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: user},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}},
		}
		grant(t, c, "firstpacket", role, binding)
		// To find the node of a pod.
		role.Rules = []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}}}
		grant(t, c, "shop", role, binding)
	}
}

func grant(t *testing.T, c *cluster, namespace string, role *rbacv1.Role, binding *rbacv1.RoleBinding) {
	t.Helper()
	rbac := c.client.RbacV1()
	if _, err := rbac.Roles(namespace).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.RoleBindings(namespace).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// register makes the Pod object of an agent, as the DaemonSet's controller and the kubelet do, and sets where the
// node's kubelet is.
func register(t *testing.T, c *cluster, node, address string, kubeletPort int32) {
	t.Helper()
	nodes := c.client.CoreV1().Nodes()
	n, err := nodes.Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		n, err = nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = kubeletPort
	if _, err := nodes.UpdateStatus(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	ds, err := c.client.AppsV1().DaemonSets("firstpacket").Get(t.Context(), "firstpacket", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pods := c.client.CoreV1().Pods("firstpacket")
	pod := podOf(ds)
	pod.Name, pod.Spec.NodeName = "firstpacket-"+node, node
	if pod, err = pods.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod.Status.Phase, pod.Status.HostIP, pod.Status.PodIP = corev1.PodRunning, address, address
	pod.Status.PodIPs = []corev1.PodIP{{IP: address}}
	if _, err := pods.UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// cli runs the command line where the API server can be reached, and returns what it prints.
func (n *node) cli(t *testing.T, k *kubelet, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	program, err := binary.Path()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var files [2]*os.File
	for i := range files {
		if files[i], err = os.Create(filepath.Join(dir, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		defer files[i].Close()
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	if err := k.starter.Start(n.NS(), cmd); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(t.Context(), func() { _ = cmd.Process.Kill() })
	defer stop()
	err = cmd.Wait()
	var said [2][]byte
	for i, f := range files {
		var readErr error
		if said[i], readErr = os.ReadFile(f.Name()); readErr != nil {
			t.Fatal(readErr)
		}
	}
	return string(said[0]), string(said[1]), err
}

// TestFleet asks the agents of a cluster through the API server, in both ways: with port-forwards to agents that serve
// on loopback alone, as the chart has them, and with the proxy to one that is exposed. One of two agents is gone, which
// must not keep the other one's flows from being shown.
func TestFleet(t *testing.T) {
	n, c := install(t)
	isolate(t, c)
	readers(t, c)
	register(t, c, nodeName, nodeAddress, serveKubelet(t, n.NS(), nodeAddress, nil))
	register(t, c, "node-gone", "192.168.7.99", 1)
	k := newKubelet(t, c, n.NS(), nodeName, nodeAddress)

	for _, way := range []struct{ via, user, other string }{
		{"port-forward", forwardUser, proxyUser},
		{"proxy", proxyUser, forwardUser},
	} {
		t.Run(way.via, func(t *testing.T) {
			exposed := *k
			if way.via == "proxy" {
				exposed.container.Args = append([]string(nil), k.container.Args...)
				for i, arg := range exposed.container.Args {
					exposed.container.Args[i] = strings.Replace(arg, "127.0.0.1:", "["+nodeAddress+"]:", 1)
				}
				exposed.container.Args = append(exposed.container.Args, "--expose-page")
			}
			n.runAgent(t, &exposed)
			if n.reaches(other) {
				t.Fatalf("port %d is open", other)
			}
			kubeconfig := func(user string) string {
				path, err := c.KubeconfigFor(user)
				if err != nil {
					t.Fatal(err)
				}
				return path
			}
			ask := func(user string, args ...string) (string, string, error) {
				return n.cli(t, k, append(args, "--via", way.via, "--kubeconfig", kubeconfig(user))...)
			}
			eventually(t, "the denied flow", func() bool {
				out, said, err := ask(way.user, "flows", "-o", "json", "--pod", "shop/server", "--verdict", "deny")
				if err != nil {
					t.Fatalf("%v: %s", err, said)
				}
				if !strings.Contains(said, "node-gone") {
					t.Fatalf("nothing is said of the node that is gone: %q", said)
				}
				return strings.Contains(out, `"policies":["NetworkPolicy/shop/server"]`)
			})
			if out, said, err := ask(way.user, "flows", "--node", nodeName, "--policy", "shop/other"); err != nil ||
				out != "" || said != "" {
				t.Errorf("flows of another policy: %q, %q, %v", out, said, err)
			}
			if out, said, err := ask(way.other, "flows"); err == nil || !strings.Contains(said, "forbidden") {
				t.Errorf("who may not %s: %q, %q, %v", way.via, out, said, err)
			}
			n.askOne(t, ask, way.user)
			n.follow(t, k, "flows", "--follow", "-o", "json", "--node", nodeName, "--via", way.via,
				"--kubeconfig", kubeconfig(way.user))
		})
	}
}

// askOne asks the agent of a node how it is and why it denies, and all agents how they are.
func (n *node) askOne(t *testing.T, ask func(user string, args ...string) (string, string, error), user string) {
	t.Helper()
	for _, way := range [][]string{{"--node", nodeName}, {"--pod", "shop/server"}} {
		out, said, err := ask(user, append([]string{"status"}, way...)...)
		if err != nil || !strings.HasPrefix(out, "node        "+nodeName+", enforcing") {
			t.Errorf("status of %s: %q, %q, %v", way, out, said, err)
		}
	}
	question := []string{"explain", "--from", "192.0.2.1", "--to", "shop/server", "--port", fmt.Sprint(other)}
	for _, way := range [][]string{{"--node", nodeName}, {"--agents"}} {
		out, said, err := ask(user, append(question, way...)...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(out, "NetworkPolicy/shop/server") {
			t.Errorf("explained by %s: %q, %q, %v", way, out, said, err)
		}
	}
	out, said, err := ask(user, "status", "--all-nodes")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("status of all, of which one is gone: %v, %s", err, said)
	}
	lines := strings.Split(out, "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[1], nodeName) || !strings.Contains(lines[1], "enforcing") ||
		!strings.HasPrefix(lines[2], "node-gone") || !strings.Contains(lines[2], "NO ANSWER") {
		t.Errorf("status of all: %s", out)
	}
}

// follow has a command follow the flows, and waits for one that is denied meanwhile.
func (n *node) follow(t *testing.T, k *kubelet, args ...string) {
	t.Helper()
	program, err := binary.Path()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := k.starter.Start(n.NS(), cmd); err != nil {
		t.Fatal(err)
	}
	said := func() string {
		b, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	eventually(t, "what was denied before", func() bool { return strings.Contains(said(), `"port":8081`) })
	n.listen(t, other+1)
	if n.reaches(other + 1) {
		t.Errorf("port %d is open", other+1)
	}
	eventually(t, "what is denied meanwhile", func() bool { return strings.Contains(said(), `"port":8082`) })
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, said())
	}
}

// runAgent runs the pod of the DaemonSet until the test ends, and waits until it is ready.
func (n *node) runAgent(t *testing.T, k *kubelet) {
	t.Helper()
	output, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	agent := k.run(t, output)
	t.Cleanup(func() {
		err := stop(agent)
		said, _ := os.ReadFile(output.Name())
		output.Close()
		var exit *exec.ExitError
		if errors.As(err, &exit) || t.Failed() {
			t.Errorf("the agent ends with %v and says:\n%s", err, bytes.TrimSpace(said))
		}
	})
	k.waitStarted(t)
	eventually(t, "the policy in force", func() bool {
		_, err := k.exec(t.Context(), []string{"/firstpacket", "probe", "/readyz"})
		return err == nil
	})
}
