// Package fleet asks agents: one at an address, or all of a cluster through its API server.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/firstpacket/firstpacket/proxy/flowstream"
	"github.com/firstpacket/firstpacket/proxy/health"
)

// Agent is one agent and the way to it. Its methods may be called from several goroutines.
type Agent struct {
	// Name is how messages call it: the node's name if that is known, else the address, or the socket's
	// file name.
	Name string
	// Pod is namespace/name of its pod, empty if it was given by its address.
	Pod string

	base   url.URL
	client *http.Client
	close  func()
}

// ErrAnswer is wrapped by errors of an agent, or of what is in between, that answered but not with what was asked for.
var ErrAnswer = errors.New("answers otherwise than an agent does")

// maxAnswer bounds an answer in bytes, maxError what is shown of one that is none.
const (
	maxAnswer = 64 << 20
	maxError  = 500
)

// At is the agent that serves an address, one of its --http-address: host:port or unix:PATH.
func At(address string) *Agent {
	network, place := health.Network(address)
	transport := &http.Transport{
		// Agents are asked directly, whatever proxy the environment names for the world outside.
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, place)
		},
	}
	host, name := place, address
	if network == "unix" {
		host, name = "localhost", strings.TrimSuffix(path.Base(place), ".sock")
	}
	return &Agent{
		Name: name, base: url.URL{Scheme: "http", Host: host}, client: &http.Client{Transport: transport},
		close: transport.CloseIdleConnections,
	}
}

// Close ends the connections to the agent.
func (a *Agent) Close() { a.close() }

// Client and Base are for those who speak to the agent themselves: its paths are below Base.
func (a *Agent) Client() (client *http.Client, base url.URL) { return a.client, a.base }

// Get asks for a path. The answer has the status 200; its body is to be closed.
func (a *Agent) Get(ctx context.Context, place string, query url.Values) (*http.Response, error) {
	u := a.base
	u.Path, u.RawQuery = strings.TrimSuffix(u.Path, "/")+place, query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.Name, err)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.Name, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", a.Name, resp.Status, err)
	}
	return nil, fmt.Errorf("%s: %w: %s: %s", a.Name, ErrAnswer, resp.Status, message(said))
}

// message is what an answer says: API servers wrap that in an object.
func message(said []byte) string {
	var status struct{ Message string }
	if json.Unmarshal(said, &status) == nil && status.Message != "" {
		return status.Message
	}
	return strings.Join(strings.Fields(string(said)), " ")
}

// JSON asks for a path and decodes the answer.
func (a *Agent) JSON(ctx context.Context, place string, answer any) error {
	resp, err := a.Get(ctx, place, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("%s: %w: %w", a.Name, ErrAnswer, err)
	}
	return nil
}

// Flows opens the agent's stream of denied flows. It is to be closed; the context bounds it.
func (a *Agent) Flows(ctx context.Context, follow bool) (io.ReadCloser, error) {
	query := url.Values{}
	if follow {
		query.Set("follow", "1")
	}
	resp, err := a.Get(ctx, flowstream.Path, query)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
