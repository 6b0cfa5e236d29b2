package clusterflags

import (
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Connection says which API server is meant, as kubectl's flags do.
type Connection struct{ Kubeconfig, Context string }

// Add adds the flags to a command.
func (c *Connection) Add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "",
		"kubeconfig file (default: $KUBECONFIG, ~/.kube/config, or the pod's own)")
	fs.StringVar(&c.Context, "context", "", "context of the kubeconfig")
}

// Given tells whether a flag names an API server.
func (c *Connection) Given() bool { return c.Kubeconfig != "" || c.Context != "" }

// Config is the configuration of clients, and the namespace that the context names, "default" if it names none.
func (c *Connection) Config() (config *rest.Config, namespace string, err error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.Kubeconfig
	client := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: c.Context})
	if config, err = client.ClientConfig(); err != nil {
		return nil, "", err
	}
	if namespace, _, err = client.Namespace(); err != nil {
		return nil, "", fmt.Errorf("kubeconfig: %w", err)
	}
	return config, namespace, nil
}
