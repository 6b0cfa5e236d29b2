package fleet

import (
	"context"

	"github.com/firstpacket/firstpacket/proxy/overview"
)

// Overviews asks all agents at once how they are, in their order.
func Overviews(ctx context.Context, agents []*Agent) overview.Table {
	return each(ctx, agents, func(ctx context.Context, a *Agent) overview.Answer {
		o, err := overview.Fetch(ctx, a.client, a.base)
		return overview.Answer{Name: a.Name, Overview: o, Err: err}
	})
}
