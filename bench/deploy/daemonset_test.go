package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

const tokenDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// podOf makes a pod as the DaemonSet's controller does.
func podOf(ds *appsv1.DaemonSet) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "firstpacket-x", Namespace: ds.Namespace, Labels: ds.Spec.Template.Labels},
		Spec:       *ds.Spec.Template.Spec.DeepCopy(),
	}
}

// kubelet runs the pod of a DaemonSet on one node.
type kubelet struct {
	node    *ns.Namespace
	name    string
	address string
	starter *ns.Starter
	// container is that of the pod.
	container container
	spec      *corev1.Container
}

// newKubelet prepares the pod of the DaemonSet as a kubelet does.
func newKubelet(t *testing.T, c *cluster, node *ns.Namespace, name, address string) *kubelet {
	t.Helper()
	ds, err := c.client.AppsV1().DaemonSets("firstpacket").Get(t.Context(), "firstpacket", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	root, image := unpackImage(t)
	pod := podOf(ds)
	pod.Spec.NodeName = name
	k := prepare(t, c, pod, node, address, root, image)
	if !slices.Equal(k.container.Capabilities, []int{unix.CAP_NET_ADMIN}) {
		t.Fatalf("capabilities %v are more than is needed", k.container.Capabilities)
	}
	return k
}

// prepare does for a pod on the host network what a kubelet does before it starts one: the image's root file system,
// the volumes, the ServiceAccount's token, the environment.
func prepare(t *testing.T, c *cluster, pod *corev1.Pod, node *ns.Namespace, address, root string,
	image imageConfig,
) *kubelet {
	t.Helper()
	k := &kubelet{
		node: node, name: pod.Spec.NodeName, address: address, starter: ns.NewStarter(), spec: &pod.Spec.Containers[0],
	}
	t.Cleanup(k.starter.Close)
	if len(pod.Spec.Containers) != 1 || !pod.Spec.HostNetwork {
		t.Fatal("not one container on the host network")
	}
	k.container = container{Root: root, Mounts: map[string]string{}}
	k.credentials(t, pod, image)
	k.container.Mounts[tokenDir] = k.token(t, c, pod, k.container.User)
	for _, m := range k.spec.VolumeMounts {
		if m.MountPath == tokenDir {
			continue // which the API server adds where it knows ServiceAccounts
		}
		dir := t.TempDir() // an emptyDir
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		k.container.Mounts[m.MountPath] = dir
	}
	for place := range k.container.Mounts {
		if err := os.MkdirAll(filepath.Join(root, place), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	k.container.Env = k.environment(t, c)
	k.container.Args = k.spec.Command
	if len(k.container.Args) == 0 {
		k.container.Args = image.Config.Entrypoint
	}
	k.container.Args = slices.Concat(k.container.Args, k.expand(k.spec.Args))
	return k
}

// runtimeCapabilities are those that container runtimes give (containerd's list; numbers from linux/capability.h).
var runtimeCapabilities = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_SETGID,
	unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW, unix.CAP_SYS_CHROOT, unix.CAP_MKNOD,
	unix.CAP_AUDIT_WRITE, unix.CAP_SETFCAP,
}

// credentials are what the pod, its container and the image say of who the process is.
func (k *kubelet) credentials(t *testing.T, pod *corev1.Pod, image imageConfig) {
	t.Helper()
	if _, err := fmt.Sscanf(image.Config.User, "%d:%d", &k.container.User, &k.container.Group); err != nil {
		t.Fatalf("user %q of the image: %v", image.Config.User, err)
	}
	if s := pod.Spec.SecurityContext; s != nil {
		if s.RunAsUser != nil {
			k.container.User, k.container.Group = int(*s.RunAsUser), int(*s.RunAsGroup)
		}
		for _, g := range s.SupplementalGroups {
			k.container.Groups = append(k.container.Groups, int(g))
		}
	}
	k.container.Groups = append(k.container.Groups, k.container.Group)
	capabilities := runtimeCapabilities
	if s := k.spec.SecurityContext; s != nil {
		k.container.ReadOnly = s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem
		k.container.NoNewPrivs = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
		if s.Capabilities != nil {
			if slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
				capabilities = nil
			}
			capabilities = slices.Clone(capabilities)
			for _, name := range s.Capabilities.Add {
				number, known := map[corev1.Capability]int{
					"NET_ADMIN": unix.CAP_NET_ADMIN, "NET_RAW": unix.CAP_NET_RAW,
				}[name]
				if !known {
					t.Fatalf("capability %s", name)
				}
				capabilities = append(capabilities, number)
			}
		}
	}
	k.container.Capabilities = capabilities
}

// token writes what the kubelet projects into each pod.
func (k *kubelet) token(t *testing.T, c *cluster, pod *corev1.Pod, user int) string {
	t.Helper()
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	request, err := c.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(t.Context(), account,
		&authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ca := c.config.CAData
	if len(ca) == 0 {
		if ca, err = os.ReadFile(c.config.CAFile); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"token": request.Status.Token, "ca.crt": string(ca), "namespace": pod.Namespace,
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if mapped(user) {
			if err := os.Chown(path, user, user); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func (k *kubelet) environment(t *testing.T, c *cluster) []string {
	t.Helper()
	host, port, err := net.SplitHostPort(strings.TrimPrefix(c.URL(), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"KUBERNETES_SERVICE_HOST=" + host, "KUBERNETES_SERVICE_PORT=" + port}
	for _, e := range k.spec.Env {
		value := e.Value
		if e.ValueFrom != nil {
			switch path := e.ValueFrom.FieldRef.FieldPath; path {
			case "spec.nodeName":
				value = k.name
			case "metadata.namespace":
				value = "firstpacket"
			case "status.hostIP":
				value = k.address
			default:
				t.Fatalf("environment variable %s is of %s", e.Name, path)
			}
		}
		env = append(env, e.Name+"="+value)
	}
	return env
}

// expand fills in $(NAME) of the environment.
func (k *kubelet) expand(args []string) []string {
	var pairs []string
	for _, e := range k.container.Env {
		name, value, _ := strings.Cut(e, "=")
		pairs = append(pairs, "$("+name+")", value)
	}
	replacer := strings.NewReplacer(pairs...)
	expanded := make([]string, len(args))
	for i, a := range args {
		expanded[i] = replacer.Replace(a)
	}
	return expanded
}

// run starts the pod's container and returns what it writes, once it has ended.
func (k *kubelet) run(t *testing.T, output *os.File) *exec.Cmd {
	t.Helper()
	cmd, err := k.container.command()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = output, output
	if err := k.starter.Start(k.node, cmd); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// exec runs another command as the container's, as exec probes do.
func (k *kubelet) exec(ctx context.Context, args []string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := k.container
	c.Args = args
	cmd, err := c.command()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = k.starter.Start(k.node, cmd)
	w.Close()
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(r)
	return out, errors.Join(err, cmd.Wait())
}

// waitStarted waits until the container's startup probe says so.
func (k *kubelet) waitStarted(t *testing.T) {
	t.Helper()
	eventually(t, "the startup probe", func() bool {
		_, err := k.exec(t.Context(), k.spec.StartupProbe.Exec.Command)
		return err == nil
	})
}

// stop ends a container as the kubelet does, and returns how it ended.
func stop(cmd *exec.Cmd) error {
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return cmd.Wait()
}
