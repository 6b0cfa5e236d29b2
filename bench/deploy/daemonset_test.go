package deploy

import (
	"context"
	"errors"
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

// newKubelet prepares the pod as a kubelet does: the image, the volumes, the ServiceAccount's token, the environment.
func newKubelet(t *testing.T, c *cluster, node *ns.Namespace, name, address string) *kubelet {
	t.Helper()
	ds, err := c.client.AppsV1().DaemonSets("firstpacket").Get(t.Context(), "firstpacket", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := podOf(ds)
	k := &kubelet{node: node, name: name, address: address, starter: ns.NewStarter(), spec: &pod.Spec.Containers[0]}
	t.Cleanup(k.starter.Close)
	if len(pod.Spec.Containers) != 1 || !pod.Spec.HostNetwork {
		t.Fatal("not one container on the host network")
	}
	root, image := unpackImage(t)
	security, own := pod.Spec.SecurityContext, k.spec.SecurityContext
	k.container = container{
		Root: root, ReadOnly: *own.ReadOnlyRootFilesystem, NoNewPrivs: !*own.AllowPrivilegeEscalation,
		User: int(*security.RunAsUser), Group: int(*security.RunAsGroup),
		Mounts: map[string]string{tokenDir: k.token(t, c, pod.Spec.ServiceAccountName, int(*security.RunAsUser))},
	}
	for _, g := range append(security.SupplementalGroups, *security.RunAsGroup) {
		k.container.Groups = append(k.container.Groups, int(g))
	}
	if !slices.Equal(own.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Fatalf("capabilities dropped: %v", own.Capabilities.Drop)
	}
	for _, name := range own.Capabilities.Add {
		if name != "NET_ADMIN" {
			t.Fatalf("capability %s is more than is needed", name)
		}
		k.container.Capabilities = append(k.container.Capabilities, unix.CAP_NET_ADMIN)
	}
	for _, m := range k.spec.VolumeMounts {
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
	k.container.Args = slices.Concat(image.Config.Entrypoint, k.expand(k.spec.Args))
	return k
}

// token writes what the kubelet projects into each pod.
func (k *kubelet) token(t *testing.T, c *cluster, account string, user int) string {
	t.Helper()
	request, err := c.client.CoreV1().ServiceAccounts("firstpacket").CreateToken(t.Context(), account,
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
		"token": request.Status.Token, "ca.crt": string(ca), "namespace": "firstpacket",
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
	out := make([]byte, 4096)
	n, _ := r.Read(out) // the end of file is no news
	if err := cmd.Wait(); err != nil {
		return out[:n], err
	}
	return out[:n], nil
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
