package report

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

const (
	// requestsPerSecond and burst bound what one agent asks of the API server.
	requestsPerSecond = 20
	burst             = 40
	requestTimeout    = 10 * time.Second
)

// client sends and receives JSON. The generated clients of these few kinds would bring those of all others along, which
// takes 19 MiB of memory on every node.
type client struct{ rest *rest.RESTClient }

func newClient(api *rest.Config) (*client, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	rc := rest.CopyConfig(api)
	rc.APIPath, rc.GroupVersion = "/", &schema.GroupVersion{Version: "v1"}
	rc.AcceptContentTypes, rc.ContentType = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	rc.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	rc.QPS, rc.Burst, rc.RateLimiter, rc.Timeout = requestsPerSecond, burst, nil, requestTimeout
	c, err := rest.RESTClientFor(rc)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	return &client{c}, nil
}

func (c *client) get(ctx context.Context, path string, into any) error {
	return decode(c.rest.Get().AbsPath(path).Do(ctx), into)
}

// post creates an object and put replaces one; what the server has made of it comes back in place.
func (c *client) post(ctx context.Context, path string, o any) error {
	return send(ctx, c.rest.Post(), path, o)
}
func (c *client) put(ctx context.Context, path string, o any) error {
	return send(ctx, c.rest.Put(), path, o)
}

func send(ctx context.Context, r *rest.Request, path string, o any) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return decode(r.AbsPath(path).SetHeader("Content-Type", runtime.ContentTypeJSON).Body(body).Do(ctx), o)
}

// patch sends a patch of the type. Those that apply are made in the name of firstpacket, whoever had the fields before.
func (c *client) patch(ctx context.Context, path string, t types.PatchType, o any) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	r := c.rest.Patch(t).AbsPath(path).Param("fieldManager", "firstpacket")
	if t == types.ApplyYAMLPatchType {
		r = r.Param("force", "true")
	}
	return r.Body(body).Do(ctx).Error()
}

func decode(r rest.Result, into any) error {
	body, err := r.Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}
