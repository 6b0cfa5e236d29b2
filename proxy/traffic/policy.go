package traffic

import (
	"context"
	"slices"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/policycache/reach"
)

// Policy graphs are for people to look at, and cost the square of what is in them.
const (
	// maxParties bounds the workloads of a policy graph; a cluster with more is drawn by namespaces.
	maxParties = 60
	// maxKinds bounds the kinds of pods that a party is asked for.
	maxKinds = 4
)

// Possible is what policy allows between workloads, whether or not they ever talked.
type Possible struct {
	// Edges are between those parties that any policy keeps apart at all.
	Edges []PossibleEdge `json:"edges"`
	// Sampled says that only some kinds of pods of a party stand for it.
	Sampled bool `json:"sampled,omitempty"`
	// LeftOut is the number of parties for which there was no room.
	LeftOut int `json:"leftOut,omitempty"`
	// Unknown is why nothing is known.
	Unknown string `json:"unknown,omitempty"`
}

// PossibleEdge says what one party may open to another.
type PossibleEdge struct {
	From Party `json:"from"`
	To   Party `json:"to"`
	// Ports are the ranges that are allowed, like 80/TCP; none if nothing is. All stands for every port.
	Ports []string `json:"ports,omitempty"`
	All   bool     `json:"all,omitempty"`
	// Part says that some pods of the parties may and others may not.
	Part bool `json:"part,omitempty"`
}

// PossibleIn asks what policy allows in a cluster. The error is the context's.
func PossibleIn(ctx context.Context, w reach.World) (Possible, error) {
	parties := partiesOf(w, func(ep *endpoint.Endpoint) Party { return Workload(ep.Namespace, ep.Name) })
	if len(parties) > maxParties {
		parties = partiesOf(w, func(ep *endpoint.Endpoint) Party { return Party{Namespace: ep.Namespace, Name: "*"} })
	}
	var p Possible
	if p.LeftOut = max(0, len(parties)-maxParties); p.LeftOut > 0 {
		parties = parties[:maxParties]
	}
	var groups []reach.Group
	for _, party := range parties {
		groups = append(groups, reach.Select(party.Name, party.owns))
	}
	for _, g := range reach.Outside(w) {
		parties = append(parties, namedParty{Party: Party{Name: g.Name}})
		groups = append(groups, g)
	}
	links, sampled, err := reach.Links(ctx, w, groups, maxKinds)
	if err != nil {
		return Possible{}, err
	}
	p.Sampled, p.Edges = sampled, make([]PossibleEdge, len(links))
	for i, l := range links {
		p.Edges[i] = PossibleEdge{From: parties[l.From].Party, To: parties[l.To].Party, All: l.All, Part: l.Part}
		for _, span := range l.Ports {
			p.Edges[i].Ports = append(p.Edges[i].Ports, span.String())
		}
	}
	return p, nil
}

// namedParty is a party of pods.
type namedParty struct {
	Party
	owns func(*endpoint.Endpoint) bool
}

// partiesOf sorts the pods into parties, which are in order.
func partiesOf(w reach.World, of func(*endpoint.Endpoint) Party) []namedParty {
	seen := map[Party]bool{}
	var list []namedParty
	for _, ep := range w.Snapshot.Endpoints() {
		if ep.Kind != identity.Pod {
			continue
		}
		party := of(ep)
		if seen[party] {
			continue
		}
		seen[party] = true
		list = append(list, namedParty{party, func(ep *endpoint.Endpoint) bool { return of(ep) == party }})
	}
	slices.SortFunc(list, func(a, b namedParty) int { return a.compare(b.Party) })
	return list
}
