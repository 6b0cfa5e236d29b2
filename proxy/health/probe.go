package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// ErrNotOK is wrapped by Probe's error when the server answers with another status than 200.
var ErrNotOK = errors.New("the answer is no")

// Probe asks for a path, such as /readyz, at one address of Config. It returns nil if the answer has the status 200; an
// answer of another status is part of the error.
func Probe(ctx context.Context, address, path string) error {
	network, address := Network(address)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("probe %s: %w", path, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return fmt.Errorf("probe %s: %s: %w", path, resp.Status, err)
	}
	return fmt.Errorf("probe %s: %w: %s", path, ErrNotOK, strings.TrimSpace(string(answer)))
}
