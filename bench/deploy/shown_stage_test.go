package deploy

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/firstpacket/firstpacket/bench/kube"
	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/plumb"
)

// stage is where the script runs: a cluster of one node, with pods that try to talk, and a laptop beside it.
type stage struct {
	*testing.T
	c       *cluster
	n       *node
	laptop  *plumb.Host
	pods    *nodePods
	starter *ns.Starter
	dir     string // a copy of the sources
	env     []string
	words   *strings.Replacer
}

// The port that policy lets the client have is named postgres; the other one is refused.
const database = 5432

// TestShown runs every command that the pages and the help show, but for the few that the script names.
func TestShown(t *testing.T) {
	s := newStage(t)
	s.play(readScript(t).steps)
}

func newStage(t *testing.T) *stage {
	t.Helper()
	n := newNode(t)
	n.listen(t, database)
	s := &stage{T: t, n: n, starter: ns.NewStarter()}
	t.Cleanup(s.starter.Close)
	var err error
	if s.laptop, err = n.network.AddHost(plumb.HostConfig{
		Name: "laptop", Addrs: []netip.Addr{netip.MustParseAddr("192.168.7.2")},
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(t, s.laptop) })
	s.c = startCluster(t, kube.Options{
		Netns: n.NS().FD(), Listen: netip.MustParseAddr(nodeAddress), ControllerManager: true,
	})
	s.populate()
	s.pods = &nodePods{c: s.c, n: n, running: map[string]*runningPod{}}
	s.pods.root, s.pods.image = unpackImage(t)
	t.Cleanup(func() { s.pods.stopAll(t) })
	s.kubeletAt(serveKubelet(t, n.NS(), nodeAddress, s.pods))
	s.sources()
	s.home()
	return s
}

// populate makes the objects that the examples are about.
func (s *stage) populate() {
	s.Helper()
	ctx, core := s.Context(), s.c.client.CoreV1()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{"kubernetes.io/os": "linux"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.0/24"}},
	}
	if _, err := core.Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	shop := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	if _, err := core.Namespaces().Create(ctx, shop, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	ports := map[string][]corev1.ContainerPort{"db": {{Name: "postgres", ContainerPort: database}}}
	for app, address := range map[string]string{"web": "10.1.0.2", "db": serverPod} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: app + "-1", Labels: map[string]string{"app": app, "tier": app}},
			Spec: corev1.PodSpec{
				NodeName:   nodeName,
				Containers: []corev1.Container{{Name: "main", Image: "main", Ports: ports[app]}},
			},
		}
		var err error
		eventually(s.T, "the namespace has its ServiceAccount", func() bool {
			var created *corev1.Pod
			if created, err = core.Pods("shop").Create(ctx, pod, metav1.CreateOptions{}); err == nil {
				pod = created
			}
			return err == nil
		})
		pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, address, []corev1.PodIP{{IP: address}}
		if _, err := core.Pods("shop").UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
			s.Fatal(err)
		}
	}
	policy := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("postgres"))}},
				From: []networkingv1.NetworkPolicyPeer{{
					PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
				}},
			}},
		},
	}
	if _, err := s.c.client.NetworkingV1().NetworkPolicies("shop").
		Create(ctx, policy, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
}

// kubeletAt tells the API server where the node's kubelet is.
func (s *stage) kubeletAt(port int32) {
	s.Helper()
	nodes := s.c.client.CoreV1().Nodes()
	n, err := nodes.Get(s.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddress}}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = port
	if _, err := nodes.UpdateStatus(s.Context(), n, metav1.UpdateOptions{}); err != nil {
		s.Fatal(err)
	}
}

// sources copies the sources, without what was built from them.
func (s *stage) sources() {
	s.Helper()
	s.dir = filepath.Join(s.TempDir(), "firstpacket")
	root, err := filepath.Abs("../..")
	if err != nil {
		s.Fatal(err)
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		to := filepath.Join(s.dir, rel)
		switch {
		case slices.Contains([]string{".git", ".cache", "bin", "bench/out"}, rel):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return os.MkdirAll(to, 0o755)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, content, 0o600)
	})
	if err != nil {
		s.Fatal(err)
	}
}

// home makes a home with a kubeconfig and the programs, and says what words stand for.
func (s *stage) home() {
	s.Helper()
	home := s.TempDir()
	for _, dir := range []string{"bin", "programs", ".kube"} {
		if err := os.Mkdir(filepath.Join(home, dir), 0o755); err != nil {
			s.Fatal(err)
		}
	}
	program, err := binary.Path()
	if err != nil {
		s.Fatal(err)
	}
	tools, err := filepath.Abs("../../.cache/bin")
	if err != nil {
		s.Fatal(err)
	}
	for name, path := range map[string]string{
		"firstpacket": program, "kubectl": filepath.Join(tools, "kubectl"), "helm": filepath.Join(tools, "helm"),
		"crane": filepath.Join(tools, "crane"),
	} {
		if _, err := os.Stat(path); err != nil {
			s.Fatalf("run `make test-servers`: %v", err)
		}
		if err := os.Symlink(path, filepath.Join(home, "programs", name)); err != nil {
			s.Fatal(err)
		}
	}
	config, err := clientcmd.LoadFromFile(s.c.Kubeconfig())
	if err != nil {
		s.Fatal(err)
	}
	config.Contexts["my-cluster"] = config.Contexts[config.CurrentContext]
	config.CurrentContext = "my-cluster"
	if err := clientcmd.WriteToFile(*config, filepath.Join(home, ".kube", "config")); err != nil {
		s.Fatal(err)
	}
	agent := s.agentUser()
	s.env = []string{
		"HOME=" + home, "NODE=" + nodeName, "TERM=dumb", "LANG=C.UTF-8", "CGO_ENABLED=0",
		// Packages are compiled once, whatever directory they are in, and for this machine only.
		"GOFLAGS=-trimpath", "IMAGE_PLATFORMS=" + runtime.GOARCH,
		"PATH=" + filepath.Join(home, "bin") + ":" + filepath.Join(home, "programs") + ":" + os.Getenv("PATH"),
	}
	for _, name := range []string{"GOPATH", "GOCACHE", "GOMODCACHE", "GOPROXY"} {
		value, err := exec.CommandContext(s.Context(), "go", "env", name).Output()
		if err != nil {
			s.Fatal(err)
		}
		s.env = append(s.env, name+"="+strings.TrimSpace(string(value)))
	}
	s.words = strings.NewReplacer(
		"REGISTRY", "127.0.0.1:5000", "POD", "$(kubectl -n firstpacket get pods -o name | head -n 1)",
		`"$(hostname)"`, nodeName, "worker-7", nodeName,
		"/path/to/kubeconfig", agent, "/etc/kubernetes/admin.conf", s.c.Kubeconfig(),
		"/tmp/shop", filepath.Join(home, "shop"), "TOPIC/NAME", "ipblock/except", "FILE", "policies.yaml",
	)
}

// agentUser makes a user with the rights that the README names, and returns the user's kubeconfig.
func (s *stage) agentUser() string {
	s.Helper()
	const name = "agent-by-hand"
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"namespaces", "nodes", "pods"}, Verbs: []string{"list", "watch"}},
			{
				APIGroups: []string{"networking.k8s.io", "policy.networking.k8s.io", "net.alpha.kubernetes.io"},
				Resources: []string{"*"}, Verbs: []string{"list", "watch"},
			},
		},
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: name}},
	}
	rbac := s.c.client.RbacV1()
	if _, err := rbac.ClusterRoles().Create(s.Context(), role, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	if _, err := rbac.ClusterRoleBindings().Create(s.Context(), binding, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	path, err := s.c.KubeconfigFor(name)
	if err != nil {
		s.Fatal(err)
	}
	return path
}

// play does steps one after the other.
func (s *stage) play(steps []*step) {
	s.Helper()
	for _, st := range steps {
		start := time.Now()
		s.do(st)
		s.Logf("%6.2f s  %s", time.Since(start).Seconds(), st.line)
	}
}

func (s *stage) do(st *step) {
	s.Helper()
	switch st.kind {
	case "!":
		f, known := stageSteps()[st.line]
		if !known {
			s.Fatalf("line %d: no step %s", st.number, st.line)
		}
		f(s)
	case "pod$":
		for _, run := range s.pods.running {
			args := strings.Fields("/" + st.line)
			if out, err := run.k.exec(s.Context(), args); err != nil {
				s.Errorf("%s: %v: %s", st.line, err, out)
			}
		}
	default:
		s.run(st)
	}
}

// run runs a command by the shell, and acts for the node's kubelet meanwhile.
func (s *stage) run(st *step) {
	s.Helper()
	output, err := os.Create(filepath.Join(s.TempDir(), "output"))
	if err != nil {
		s.Fatal(err)
	}
	defer output.Close()
	cmd := exec.Command("bash", "-c", s.words.Replace(st.line))
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, s.env, output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	at := s.laptop.NS()
	if strings.HasPrefix(st.kind, "node") {
		at = s.n.NS()
	}
	if err := s.starter.Start(at, cmd); err != nil {
		s.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // what came of it is asked for below
	}()
	defer func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }() // if it still runs, the test has failed
	said := func() string {
		b, err := os.ReadFile(output.Name())
		if err != nil {
			s.Fatal(err)
		}
		return string(b)
	}
	want := regexp.MustCompile(st.want)
	stays := strings.HasSuffix(st.kind, "&")
	tooLong := time.After(2 * time.Minute)
	for done := false; !done; {
		select {
		case <-ended:
			if status := fmt.Sprint(cmd.ProcessState.ExitCode()); stays || status != st.status || !want.MatchString(said()) {
				s.Errorf("line %d: %s\nends with status %s and prints:\n%s", st.number, st.line, status, said())
			}
			return
		case <-time.After(50 * time.Millisecond):
			s.pods.sync(s.T)
			done = stays && want.MatchString(said())
		case <-tooLong:
			s.Fatalf("line %d: %s\ndoes not print what is wanted, but:\n%s", st.number, st.line, said())
		}
	}
	s.play(st.meanwhile)
	if err := unix.Kill(-cmd.Process.Pid, unix.SIGTERM); err != nil {
		s.Fatal(err)
	}
	<-ended
	if strings.HasPrefix(st.line, "firstpacket") && cmd.ProcessState.ExitCode() != 0 {
		s.Errorf("line %d: %s\nis ended with status %v and prints:\n%s", st.number, st.line, cmd.ProcessState, said())
	}
}

// sh runs a command that nothing shows.
func (s *stage) sh(line string) {
	s.Helper()
	s.run(&step{kind: "$", line: line, status: "0"})
}

// background starts a command that runs until the test ends.
func (s *stage) background(line string) {
	s.Helper()
	cmd := exec.Command("bash", "-c", line)
	cmd.Dir, cmd.Env = s.dir, s.env
	if err := s.starter.Start(s.laptop.NS(), cmd); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		_ = cmd.Process.Kill() // it may just have ended
		_ = cmd.Wait()
	})
}
