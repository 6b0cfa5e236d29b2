// Package kubetest starts control planes for tests.
package kubetest

import (
	"context"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/kube"
)

// patience is how long a control plane may take to start. It builds nothing, but a busy machine is slow to start it.
const patience = 2 * time.Minute

// Start starts a control plane that runs until the test ends.
func Start(tb testing.TB, opts kube.Options) *kube.Cluster {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	c, err := kube.Start(ctx, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return c
}
