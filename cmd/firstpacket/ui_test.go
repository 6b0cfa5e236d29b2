package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUIOfManifests serves a flow log with the manifests that explain it, and ends when it is asked to.
func TestUIOfManifests(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, w := io.Pipe()
	root := newRoot()
	root.SetOut(w)
	root.SetArgs([]string{
		"ui", "--listen", "127.0.0.1:0", "--manifests", filepath.Join("testdata", "shop"),
		"--file", filepath.Join("testdata", "flows.log"),
	})
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx) }()
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSpace(address)+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}

	resp := get("/page/explain?output=text&from=shop/web-1&to=shop/db-1&port=80")
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasPrefix(string(text), "DENY") || resp.Header.Get("Firstpacket-Verdict") != "deny" {
		t.Errorf("explained: %s, %v, %v", text, resp.Header, err)
	}

	events := get("/page/events")
	defer events.Body.Close()
	wanted := map[string]bool{"event: flow": true, `"pod":"web-1"`: true, `"verdict":"deny","count":`: true}
	for lines := bufio.NewScanner(events.Body); len(wanted) > 0 && lines.Scan(); {
		for want := range wanted {
			if strings.Contains(lines.Text(), want) {
				delete(wanted, want)
			}
		}
	}
	if len(wanted) > 0 {
		t.Errorf("events without %v", wanted)
	}

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the end: %v", err)
	}
}
