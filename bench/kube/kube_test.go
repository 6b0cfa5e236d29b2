package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// elevated is set in the environment of the process that TestMain starts when it is not root.
const elevated = "FIRSTPACKET_KUBE_TEST_ELEVATED"

// TestMain runs everything as root of a user namespace if it is not root already: one of the tests makes a network
// namespace.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 && os.Getenv(elevated) == "" {
		os.Exit(elevate())
	}
	if os.Getenv(elevated) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if os.Getenv(crasher) != "" {
		os.Exit(crash())
	}
	goleak.VerifyTestMain(m)
}

func elevate() int {
	runtime.LockOSThread() // the death signal is sent when this thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), elevated+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		fmt.Fprintf(os.Stderr, "not root, and no user namespace: %v\n", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// start runs a cluster for one test, and makes its client.
func start(t *testing.T, opts Options) (*Cluster, kubernetes.Interface) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	client, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	return c, client
}

func createNamespace(t *testing.T, client kubernetes.Interface, name string) *corev1.Namespace {
	t.Helper()
	ns, err := client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// event waits for the next event of a watch; the watch's end or the test's is a failure.
func event(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case ev, ok := <-w.ResultChan():
		if !ok {
			t.Fatal("the watch ended")
		}
		return ev
	case <-time.After(time.Minute):
		t.Fatal("no event within a minute")
	}
	return watch.Event{}
}

// TestCluster asks one cluster several things, because each takes seconds to start.
func TestCluster(t *testing.T) {
	c, client := start(t, Options{})
	t.Run("pods and policies are watched", func(t *testing.T) { testWatches(t, client) })
	t.Run("RBAC is on", func(t *testing.T) { testRBAC(t, c, client) })
	t.Run("a paused server hangs", func(t *testing.T) { testPause(t, c, client) })
}

func testWatches(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	ctx := t.Context()
	createNamespace(t, client, "shop")

	pods, err := client.CoreV1().Pods("shop").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer pods.Stop()
	pod, err := client.CoreV1().Pods("shop").Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{
			NodeName:   "node-a",
			Containers: []corev1.Container{{Name: "web", Image: "example.com/web"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.PodIP = "10.244.1.5"
	pod.Status.PodIPs = []corev1.PodIP{{IP: "10.244.1.5"}, {IP: "fd00:244:1::5"}}
	if _, err := client.CoreV1().Pods("shop").UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if ev := event(t, pods); ev.Type != watch.Added {
		t.Errorf("first event of the pod: %s, want %s", ev.Type, watch.Added)
	}
	ev := event(t, pods)
	if got, ok := ev.Object.(*corev1.Pod); !ok || ev.Type != watch.Modified || len(got.Status.PodIPs) != 2 {
		t.Errorf("second event of the pod: %s %v, want its two addresses", ev.Type, ev.Object)
	}

	policies, err := client.NetworkingV1().NetworkPolicies("").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer policies.Stop()
	_, err = client.NetworkingV1().NetworkPolicies("shop").Create(ctx, &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "deny-all"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ev = event(t, policies)
	policy, ok := ev.Object.(*networkingv1.NetworkPolicy)
	if !ok || policy.Name != "deny-all" {
		t.Fatalf("event of the policy: %s %v", ev.Type, ev.Object)
	}
	if len(policy.Spec.PolicyTypes) != 1 {
		t.Errorf("policyTypes %v, want the API server's default of one", policy.Spec.PolicyTypes)
	}
}

func testRBAC(t *testing.T, c *Cluster, client kubernetes.Interface) {
	t.Helper()
	path, err := c.KubeconfigFor("system:serviceaccount:kube-system:nobody", "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nobody.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list pods without a role: %v, want forbidden", err)
	}
	if _, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("list pods as administrator: %v", err)
	}
}

func TestRestartKeepsDataAndForgetsHistory(t *testing.T) {
	c, client := start(t, Options{})
	ctx := t.Context()
	before := createNamespace(t, client, "before")
	createNamespace(t, client, "after")

	if _, err := c.Compact(ctx); err != nil {
		t.Fatal(err)
	}
	c.APIServer.Kill()
	if c.APIServer.Running() {
		t.Error("the API server runs after Kill")
	}
	if _, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{}); err == nil {
		t.Error("a dead API server answered")
	}
	c.Etcd.Kill()
	if err := c.Etcd.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.APIServer.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Namespaces().Get(ctx, "after", metav1.GetOptions{}); err != nil {
		t.Errorf("data is gone: %v", err)
	}

	w, err := client.CoreV1().Namespaces().Watch(ctx, metav1.ListOptions{ResourceVersion: before.ResourceVersion})
	if err == nil {
		defer w.Stop()
		err = apierrors.FromObject(event(t, w).Object)
	}
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("watch from a compacted revision: %v, want expired", err)
	}
}

func testPause(t *testing.T, c *Cluster, client kubernetes.Interface) {
	t.Helper()
	c.APIServer.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused API server: %v, want the deadline", err)
	}
	c.APIServer.Resume()
	if _, err := client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("a resumed API server: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.APIServer.Stop(ctx); err != nil {
		t.Errorf("graceful end: %v", err)
	}
}

func TestControllerManagerMakesServiceAccounts(t *testing.T) {
	_, client := start(t, Options{ControllerManager: true})
	createNamespace(t, client, "shop")
	w, err := client.CoreV1().ServiceAccounts("shop").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if sa, ok := event(t, w).Object.(*corev1.ServiceAccount); !ok || sa.Name != "default" {
		t.Errorf("got %v, want the service account default", sa)
	}
}

func TestInsideANetworkNamespace(t *testing.T) {
	ns := make(chan int, 1)
	go func() { // the thread, and with it the only other user of the namespace, ends with the goroutine
		runtime.LockOSThread()
		fd := -1
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
		} else if err := loopbackUp(); err != nil {
			t.Errorf("lo: %v", err)
		} else if fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			t.Errorf("open the namespace: %v", err)
		}
		ns <- fd
	}()
	fd := <-ns
	if fd < 0 {
		t.FailNow()
	}
	defer unix.Close(fd)

	c, client := start(t, Options{Netns: fd})
	createNamespace(t, client, "inside")
	outside, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig()) // its clients dial from here
	if err != nil {
		t.Fatal(err)
	}
	other, err := kubernetes.NewForConfig(outside)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("the API server is reachable from outside of its network namespace")
	}
}

func TestMissingBinariesSayWhatToDo(t *testing.T) {
	if _, err := Start(t.Context(), Options{BinDir: t.TempDir()}); !errors.Is(err, ErrNotBuilt) {
		t.Errorf("Start = %v, want ErrNotBuilt", err)
	}
}

func TestServerThatEndsAtOnce(t *testing.T) {
	_, err := Start(t.Context(), Options{APIServerArgs: []string{"--no-such-flag"}})
	if !errors.Is(err, ErrExited) {
		t.Errorf("Start = %v, want ErrExited", err)
	}
}

func TestDirectoriesOfTheDeadAreRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dead, err := openDirectory("")
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.lock.Close(); err != nil { // as the kernel does when the process dies
		t.Fatal(err)
	}
	first, err := openDirectory("")
	if err != nil {
		t.Fatal(err)
	}
	second, err := openDirectory("")
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil || len(left) != 2 {
		t.Errorf("directories %v (%v), want those of the living, %s and %s", left, err, first.name, second.name)
	}
	for _, d := range []*directory{first, second} {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}
}
