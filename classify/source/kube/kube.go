// Package kube is the source.Source of a real cluster: it lists and watches through a Kubernetes API server.
package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/firstpacket/firstpacket/classify/source"
)

// ErrUnreachable is returned by WaitReachable; it wraps the last attempt's error.
var ErrUnreachable = errors.New("kube: the API server cannot be reached")

// Config says how to reach the API server.
type Config struct {
	// Kubeconfig is a file as kubectl reads it. Empty means the service account of the pod that this runs in.
	Kubeconfig string
	// Context is the kubeconfig's context to use; empty means its current one.
	Context string
	// UserAgent names the client in the server's logs; empty means client-go's default.
	UserAgent string
}

// Source lists and watches through one API server.
type Source struct{ config *rest.Config }

var _ source.Source = (*Source)(nil)

// New reads the configuration. It does not speak to the server yet.
func New(cfg Config) (*Source, error) {
	var rc *rest.Config
	var err error
	if cfg.Kubeconfig == "" {
		rc, err = rest.InClusterConfig()
	} else {
		rc, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: cfg.Kubeconfig},
			&clientcmd.ConfigOverrides{CurrentContext: cfg.Context},
		).ClientConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("kube: configuration of the API client: %w", err)
	}
	return NewForConfig(rc, cfg.UserAgent), nil
}

// NewForConfig is New for a configuration that exists already. The configuration is copied.
func NewForConfig(rc *rest.Config, userAgent string) *Source {
	rc = rest.CopyConfig(rc)
	if userAgent != "" {
		rc.UserAgent = userAgent
	} else if rc.UserAgent == "" {
		rc.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	// A watch is one request that lasts; a timeout of the client would end it.
	rc.Timeout = 0
	// There are a handful of requests, which reflectors pace themselves.
	rc.QPS, rc.RateLimiter = -1, nil
	// Protobuf takes a fraction of the memory and time of JSON. Servers answer for custom resources, which have no
	// protobuf form, with the next best.
	rc.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	rc.ContentType = runtime.ContentTypeProtobuf
	return &Source{config: rc}
}

// Config says how the server is reached, for requests that are no watches. It is a copy.
func (s *Source) Config() *rest.Config { return rest.CopyConfig(s.config) }

// Host is the server's address, for messages.
func (s *Source) Host() string { return s.config.Host }

// ListerWatcher implements source.Source. It needs the permission to list and watch the kind in all namespaces.
func (s *Source) ListerWatcher(k source.Kind) (cache.ListerWatcher, error) {
	if k.AddToScheme == nil {
		return nil, fmt.Errorf("kube: kind %s has no AddToScheme", k.Name)
	}
	scheme := runtime.NewScheme()
	// Status, the answer of failing requests, and the events of watches.
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	if err := k.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("kube: types of kind %s: %w", k.Name, err)
	}
	client, err := rest.RESTClientFor(s.configFor(k.GVR.GroupVersion(), scheme))
	if err != nil {
		return nil, fmt.Errorf("kube: client for kind %s: %w", k.Name, err)
	}
	return cache.NewListWatchFromClient(client, k.GVR.Resource, metav1.NamespaceAll, fields.Everything()), nil
}

func (s *Source) configFor(gv schema.GroupVersion, scheme *runtime.Scheme) *rest.Config {
	rc := rest.CopyConfig(s.config)
	rc.GroupVersion = &gv
	rc.APIPath = "/apis"
	if gv.Group == "" {
		rc.APIPath = "/api"
	}
	codecs := rest.CodecFactoryForGeneratedClient(scheme, serializer.NewCodecFactory(scheme))
	rc.NegotiatedSerializer = codecs.WithoutConversion()
	return rc
}

const (
	// attemptTimeout bounds one request of WaitReachable: a server that drops packets gives no other answer.
	attemptTimeout = 5 * time.Second
	// attemptPause lies between two requests of WaitReachable.
	attemptPause = 250 * time.Millisecond
)

// WaitReachable returns when the server has answered a request with these credentials. When within has passed without,
// it returns an error that is ErrUnreachable and wraps the last attempt's; when ctx ends, that of ctx.
func (s *Source) WaitReachable(ctx context.Context, within time.Duration) error {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	rc := s.configFor(schema.GroupVersion{Version: "v1"}, scheme)
	client, err := rest.RESTClientFor(rc)
	if err != nil {
		return fmt.Errorf("kube: client: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var last error
	for {
		err := s.attempt(limited, client)
		if err == nil {
			return nil
		}
		if last == nil || limited.Err() == nil {
			// The end of the waiting itself says nothing about the server.
			last = err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		select {
		case <-limited.Done():
			return fmt.Errorf("%w: no usable answer from %s within %s: %w", ErrUnreachable, s.config.Host, within, last)
		case <-time.After(attemptPause):
		}
	}
}

// attempt asks for the version, which every authenticated client may see.
func (s *Source) attempt(ctx context.Context, client *rest.RESTClient) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return client.Get().AbsPath("/version").SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx).Error()
}
