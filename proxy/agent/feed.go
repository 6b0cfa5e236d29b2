package agent

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/client-go/rest"

	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/classify/source/kube"
	"github.com/firstpacket/firstpacket/classify/source/manifests"
	"github.com/firstpacket/firstpacket/policycache/state"
)

// feed is where the cluster's objects come from.
type feed struct {
	source.Source
	// name is how messages call it.
	name string
	// directory is set when the objects come from manifests.
	directory *manifests.Source
	// api says how to reach the API server that the objects come from; nil for a directory.
	api   *rest.Config
	kinds []source.Kind
	close func()
}

// digest names the directory's content that the versions stand for; empty for other sources, and while the kinds are
// not all at the same load.
func (f *feed) digest(versions map[string]string) string {
	if f == nil || f.directory == nil {
		return ""
	}
	load := ""
	for _, v := range versions {
		if load == "" {
			load = v
		}
		if v != load {
			return ""
		}
	}
	d, _ := f.directory.DigestOf(load)
	return d
}

// follow opens the configured source and begins to follow all kinds.
func (a *agent) follow(ctx context.Context) (*source.Queue, error) {
	f, err := a.openSource(ctx)
	if err != nil {
		return nil, err
	}
	a.source = f
	q := source.New(ctx, source.Config{OnError: func(kind source.Health, err error) {
		meanwhile := "the last good state stays in force"
		if !kind.Synced && !kind.Absent {
			meanwhile = "waiting: without this kind the agent takes nothing into force"
		}
		a.cfg.Log.Warn().Err(err).Str("kind", kind.Kind).Msg(meanwhile)
	}})
	a.changes.Store(q)
	for _, k := range f.kinds {
		if err := q.Add(f, k); err != nil {
			a.unfollow()
			return nil, err
		}
	}
	return q, nil
}

// unfollow ends what follow began.
func (a *agent) unfollow() {
	a.changes.Load().Close()
	a.source.close()
}

func (a *agent) openSource(ctx context.Context) (*feed, error) {
	if a.cfg.Manifests != "" {
		return a.openDirectory()
	}
	s, err := kube.New(kube.Config{Kubeconfig: a.cfg.Kubeconfig, UserAgent: "firstpacket/" + a.cfg.Version})
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("no source of the cluster's state: give --kubeconfig or --manifests, or run as a pod")
	}
	if err != nil {
		return nil, err
	}
	if err := s.WaitReachable(ctx, a.cfg.StartTimeout); err != nil {
		return nil, fmt.Errorf("check the address and credentials of the API server: %w", err)
	}
	return &feed{
		Source: s, name: "the API server " + s.Host(), api: s.Config(), kinds: state.Kinds(), close: func() {},
	}, nil
}

func (a *agent) openDirectory() (*feed, error) {
	log := a.cfg.Log
	told := func(st manifests.State) {
		for _, p := range st.Problems {
			log.Error().Err(p).Msg("manifest not taken over; the last good state of its file stays in force")
		}
		for _, kind := range st.Ignored {
			log.Info().Stringer("kind", kind).Msg("ignoring objects of a kind that policy does not depend on")
		}
		for _, n := range st.Notes {
			log.Info().Stringer("manifest", n).Msg("ignoring an object that has no meaning any more")
		}
		log.Info().Uint64("load", st.Number).Int("files", st.Files).Int("objects", st.Objects).Msg("manifests read")
	}
	s, err := manifests.Open(a.cfg.Manifests, manifests.Options{Kinds: state.ManifestKinds(), OnLoad: told})
	if err != nil {
		return nil, fmt.Errorf("check the directory given with --manifests: %w", err)
	}
	closed := func() {
		if err := s.Close(); err != nil {
			log.Warn().Err(err).Msg("closing the directory")
		}
	}
	return &feed{
		Source: s, name: "the directory " + a.cfg.Manifests, directory: s, kinds: state.DirectoryKinds(), close: closed,
	}, nil
}
