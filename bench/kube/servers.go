package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

func (c *Cluster) etcdArgs(client, peer string) []string {
	return []string{
		"--name=etcd",
		"--data-dir=" + c.dir.path("etcd"),
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=etcd=" + peer,
		"--client-cert-auth", "--peer-client-cert-auth",
		"--trusted-ca-file=" + c.dir.path("ca.crt"),
		"--cert-file=" + c.dir.path("serving.crt"),
		"--key-file=" + c.dir.path("serving.key"),
		"--peer-trusted-ca-file=" + c.dir.path("ca.crt"),
		"--peer-cert-file=" + c.dir.path("serving.crt"),
		"--peer-key-file=" + c.dir.path("serving.key"),
		"--socket-reuse-port",
		"--unsafe-no-fsync", // the data must outlive the process, not the machine
		"--log-level=warn",
	}
}

func (c *Cluster) apiServerArgs(addr netip.AddrPort) []string {
	ranges := make([]string, len(c.opts.ServiceCIDRs))
	for i, p := range c.opts.ServiceCIDRs {
		ranges[i] = p.String()
	}
	args := []string{
		"--bind-address=" + addr.Addr().String(),
		"--advertise-address=" + addr.Addr().String(),
		fmt.Sprintf("--secure-port=%d", addr.Port()),
		"--permit-port-sharing",
		"--etcd-servers=" + c.etcdURL,
		"--etcd-cafile=" + c.dir.path("ca.crt"),
		"--etcd-certfile=" + c.dir.path("serving.crt"),
		"--etcd-keyfile=" + c.dir.path("serving.key"),
		"--client-ca-file=" + c.dir.path("ca.crt"),
		"--tls-cert-file=" + c.dir.path("serving.crt"),
		"--tls-private-key-file=" + c.dir.path("serving.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.dir.path("tokens.key"),
		"--service-account-signing-key-file=" + c.dir.path("tokens.key"),
		"--service-cluster-ip-range=" + strings.Join(ranges, ","),
		"--endpoint-reconciler-type=none", // a loopback address may not be an endpoint
		"--authorization-mode=Node,RBAC",
		"--allow-privileged",
	}
	if !c.opts.ControllerManager {
		// Nobody makes the service accounts that this plugin demands of every pod.
		args = append(args, "--disable-admission-plugins=ServiceAccount")
	}
	return append(args, c.opts.APIServerArgs...)
}

func (c *Cluster) controllerManagerArgs(addr netip.AddrPort) []string {
	return []string{
		"--kubeconfig=" + c.Kubeconfig(),
		"--bind-address=" + addr.Addr().String(),
		fmt.Sprintf("--secure-port=%d", addr.Port()),
		"--permit-port-sharing",
		"--tls-cert-file=" + c.dir.path("serving.crt"),
		"--tls-private-key-file=" + c.dir.path("serving.key"),
		"--root-ca-file=" + c.dir.path("ca.crt"),
		"--service-account-private-key-file=" + c.dir.path("tokens.key"),
		"--leader-elect=false",
		// The nodes here have no kubelet: nothing may find them dead and take their pods away.
		"--controllers=*,-node-lifecycle-controller,-taint-eviction-controller,-pod-garbage-collector-controller",
	}
}

// etcdReady asks etcd's health endpoint, which answers once a write would succeed.
func (c *Cluster) etcdReady() func(context.Context) error {
	return func(ctx context.Context) error { return c.get(ctx, c.etcdURL+"/health") }
}

func (c *Cluster) healthy(addr netip.AddrPort) func(context.Context) error {
	return func(ctx context.Context) error { return c.get(ctx, "https://"+addr.String()+"/healthz") }
}

// apiReady wants /readyz, which waits for the bootstrap RBAC roles, and the namespace "default", which it does not.
func apiReady(client kubernetes.Interface) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
			return err
		}
		_, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
		return err
	}
}

// makeAdmin makes the administrator's client configuration and kubeconfig.
func (c *Cluster) makeAdmin() error {
	const user = "firstpacket-test-admin"
	cert, err := c.ca.client(user, []string{"system:masters"})
	if err != nil {
		return err
	}
	c.config = &rest.Config{
		Host:            c.url,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.ca.pem, CertData: cert.cert, KeyData: cert.key},
		QPS:             -1,
	}
	if c.opts.Netns != 0 {
		c.config.Dial = dialer(c.opts.Netns)
	}
	return c.writeKubeconfig(c.Kubeconfig(), user, cert)
}

func (c *Cluster) writeKubeconfig(path, user string, cert pair) error {
	const name = "firstpacket-test"
	config := api.NewConfig()
	config.Clusters[name] = &api.Cluster{Server: c.url, CertificateAuthorityData: c.ca.pem}
	config.AuthInfos[user] = &api.AuthInfo{ClientCertificateData: cert.cert, ClientKeyData: cert.key}
	config.Contexts[name] = &api.Context{Cluster: name, AuthInfo: user}
	config.CurrentContext = name
	return clientcmd.WriteToFile(*config, path)
}

// Compact makes etcd forget every revision before the newest one, and returns that revision. A watch that starts from
// an older resource version is then refused ("too old resource version", 410 Gone) as soon as the API server's own
// watch cache does not reach back that far either; it never does after a restart.
func (c *Cluster) Compact(ctx context.Context) (int64, error) {
	var status struct {
		Header struct {
			Revision int64 `json:"revision,string"`
		} `json:"header"`
	}
	if err := c.post(ctx, "/v3/maintenance/status", struct{}{}, &status); err != nil {
		return 0, fmt.Errorf("etcd's revision: %w", err)
	}
	revision := status.Header.Revision
	request := struct {
		Revision int64 `json:"revision,string"`
		Physical bool  `json:"physical"`
	}{revision, true}
	if err := c.post(ctx, "/v3/kv/compaction", request, &struct{}{}); err != nil {
		return 0, fmt.Errorf("compact etcd at revision %d: %w", revision, err)
	}
	return revision, nil
}

// post calls etcd's JSON gateway.
func (c *Cluster) post(ctx context.Context, path string, request, response any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.etcdURL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := c.do(req)
	if err != nil {
		return err
	}
	return json.Unmarshal(answer, response)
}

func (c *Cluster) get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	_, err = c.do(req)
	return err
}

// do sends a request to etcd or the controller manager on a connection of its own, with the administrator's rights.
func (c *Cluster) do(req *http.Request) ([]byte, error) {
	cert, err := tls.LoadX509KeyPair(c.dir.path("serving.crt"), c.dir.path("serving.key"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.ca.cert)
	client := http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}},
		DialContext:       dialer(c.opts.Netns),
		DisableKeepAlives: true,
	}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", req.URL, resp.Status, body)
	}
	return body, nil
}
