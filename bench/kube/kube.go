// Package kube runs a real Kubernetes control plane on this machine: etcd, kube-apiserver and, where asked for,
// kube-controller-manager, as processes of their own on free ports of one address, with certificates made on the fly
// and RBAC on. It is ready within seconds, keeps its data in one directory, and nothing of it survives the process
// that started it. Tests use it to put the agent before the real thing, and to take that away again.
//
// The binaries are built from source by `make test-servers` (bench/apiserver pins the versions); this package imports
// nothing of them.
package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// BinDirVariable names the environment variable that says where the servers' binaries are, for tests that run outside
// of the repository.
const BinDirVariable = "FIRSTPACKET_TEST_SERVERS"

// ErrNotBuilt is wrapped by Start's error when a server's binary is missing.
var ErrNotBuilt = errors.New("the test servers are not built: run `make test-servers`")

// Options say how to run the cluster; the zero value is a good one.
type Options struct {
	// Dir keeps data, certificates and logs. Empty: a temporary directory that Stop removes, and that the next Start
	// removes when the process dies before it can.
	Dir string
	// BinDir has the binaries. Empty: the value of BinDirVariable, or else .cache/bin of the repository that the
	// working directory is in.
	BinDir string
	// Listen is the address of the API server. Zero: 127.0.0.1. etcd always listens on 127.0.0.1.
	Listen netip.Addr
	// Names are further addresses or host names that the API server's certificate is valid for.
	Names []string
	// Netns is the descriptor of the network namespace that the servers run in; it must stay open until Stop, and its
	// lo must be up. 0: the namespace of this process. The clients made from Config dial from inside that namespace.
	Netns int
	// ServiceCIDRs are the ranges of ClusterIPs, one per family. Empty: 10.96.0.0/16 and fd00:96::/112.
	ServiceCIDRs []netip.Prefix
	// ControllerManager starts kube-controller-manager too. Without it nothing makes pods of Deployments,
	// EndpointSlices of Services, or service accounts, and pods need none.
	ControllerManager bool
	// APIServerArgs are further arguments for kube-apiserver, after those this package gives.
	APIServerArgs []string
}

// Cluster is a running control plane.
type Cluster struct {
	// Etcd, APIServer and ControllerManager (nil if not asked for) can be stopped and started one by one.
	Etcd, APIServer, ControllerManager *Server

	opts    Options
	dir     *directory
	ca      *authority
	ports   []*reservation
	etcdURL string
	url     string
	config  *rest.Config
}

// Start starts the servers and returns once the API server is ready, the bootstrap RBAC roles and the namespace
// "default" are there and, if asked for, the controller manager is healthy. ctx bounds the start only; Stop ends the
// cluster.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	c := &Cluster{opts: opts}
	if err := c.start(ctx); err != nil {
		_ = c.Stop()
		return nil, fmt.Errorf("test cluster: %w", err)
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) (err error) {
	if c.dir, err = openDirectory(c.opts.Dir); err != nil {
		return err
	}
	if err = c.writeCertificates(); err != nil {
		return err
	}
	if err = c.startEtcd(ctx); err != nil {
		return err
	}
	if err = c.startAPIServer(ctx); err != nil {
		return err
	}
	if c.opts.ControllerManager {
		return c.startControllerManager(ctx)
	}
	return nil
}

// Stop ends all servers at once and removes what was made. It may be called more than once.
func (c *Cluster) Stop() error {
	for _, s := range []*Server{c.ControllerManager, c.APIServer, c.Etcd} {
		if s != nil {
			s.Kill()
		}
	}
	for _, p := range c.ports {
		p.release()
	}
	c.ports = nil
	if c.dir == nil {
		return nil
	}
	err := c.dir.close()
	c.dir = nil
	return err
}

// URL is where the API server listens, "https://ADDRESS:PORT".
func (c *Cluster) URL() string { return c.url }

// Config returns a client configuration for a cluster administrator, without client-side rate limits. It belongs to the
// caller.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Kubeconfig is the path of the administrator's kubeconfig. Programs that use it dial from the namespace they run in.
func (c *Cluster) Kubeconfig() string { return c.dir.path("admin.kubeconfig") }

// KubeconfigFor writes a kubeconfig for a user, who may do what RBAC grants the user and the groups, and returns its
// path. A service account is the user "system:serviceaccount:NAMESPACE:NAME".
func (c *Cluster) KubeconfigFor(user string, groups ...string) (string, error) {
	cert, err := c.ca.client(user, groups)
	if err != nil {
		return "", err
	}
	path := c.dir.path("user-" + filepath.Base(user) + ".kubeconfig")
	return path, c.writeKubeconfig(path, user, cert)
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	client, err := c.reserve(loopback)
	if err != nil {
		return err
	}
	peer, err := c.reserve(loopback)
	if err != nil {
		return err
	}
	c.etcdURL = "https://" + client.String()
	c.Etcd = c.server("etcd", c.etcdArgs(c.etcdURL, "https://"+peer.String()), c.etcdReady())
	return c.Etcd.Start(ctx)
}

func (c *Cluster) startAPIServer(ctx context.Context) error {
	addr, err := c.reserve(c.opts.Listen)
	if err != nil {
		return err
	}
	c.url = "https://" + addr.String()
	if err := c.makeAdmin(); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return err
	}
	c.APIServer = c.server("kube-apiserver", c.apiServerArgs(addr), apiReady(client))
	return c.APIServer.Start(ctx)
}

func (c *Cluster) startControllerManager(ctx context.Context) error {
	addr, err := c.reserve(loopback)
	if err != nil {
		return err
	}
	c.ControllerManager = c.server("kube-controller-manager", c.controllerManagerArgs(addr), c.healthy(addr))
	return c.ControllerManager.Start(ctx)
}

func (c *Cluster) server(name string, args []string, ready func(context.Context) error) *Server {
	return &Server{
		name:  name,
		path:  filepath.Join(c.opts.BinDir, name),
		args:  args,
		log:   c.dir.path(name + ".log"),
		netns: c.opts.Netns,
		ready: ready,
	}
}

func (c *Cluster) reserve(addr netip.Addr) (netip.AddrPort, error) {
	r, err := reserve(c.opts.Netns, addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	c.ports = append(c.ports, r)
	return r.addr, nil
}

func (c *Cluster) writeCertificates() (err error) {
	if c.ca, err = newAuthority(); err != nil {
		return err
	}
	if err := os.WriteFile(c.dir.path("ca.crt"), c.ca.pem, 0o600); err != nil {
		return err
	}
	addrs, names := []net.IP{loopback.AsSlice(), c.opts.Listen.AsSlice()}, []string{"localhost"}
	for _, p := range c.opts.ServiceCIDRs {
		addrs = append(addrs, p.Masked().Addr().Next().AsSlice()) // the ClusterIP of the Service "kubernetes"
	}
	for _, name := range c.opts.Names {
		if ip := net.ParseIP(name); ip != nil {
			addrs = append(addrs, ip)
			continue
		}
		names = append(names, name)
	}
	serving, err := c.ca.serving("firstpacket-test-server", addrs, names)
	if err != nil {
		return err
	}
	if err := serving.write(c.dir.name, "serving"); err != nil {
		return err
	}
	tokens, err := c.ca.client("service-account-issuer", nil)
	if err != nil {
		return err
	}
	return tokens.write(c.dir.name, "tokens")
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// complete fills in the defaults and checks that the binaries are there.
func (o *Options) complete() error {
	if !o.Listen.IsValid() {
		o.Listen = loopback
	}
	if len(o.ServiceCIDRs) == 0 {
		o.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
	}
	if o.BinDir == "" {
		o.BinDir = os.Getenv(BinDirVariable)
	}
	if o.BinDir == "" {
		root, err := repository()
		if err != nil {
			return err
		}
		o.BinDir = filepath.Join(root, ".cache", "bin")
	}
	names := []string{"etcd", "kube-apiserver"}
	if o.ControllerManager {
		names = append(names, "kube-controller-manager")
	}
	for _, name := range names {
		switch _, err := os.Stat(filepath.Join(o.BinDir, name)); {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s: %w", filepath.Join(o.BinDir, name), ErrNotBuilt)
		case err != nil:
			return err
		}
	}
	return nil
}

// repository finds the root of the repository that the working directory is in.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "bench", "apiserver", "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("not inside the repository and %s not set: %w", BinDirVariable, ErrNotBuilt)
		}
		dir = parent
	}
}
