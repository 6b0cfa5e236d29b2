package explain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/term"
)

// Path is where an agent serves Handler.
const Path = "/explain"

// VerdictHeader carries the verdict, none with an error, so that a client need not read the body to know it.
const VerdictHeader = "Firstpacket-Verdict"

// maxAnswer bounds what a client reads, in bytes.
const maxAnswer = 64 << 20

// Handler answers questions about the snapshot that is in force, see HandlerOf. The snapshot may be nil while there is
// none.
func Handler(snapshot func() *engine.Snapshot) http.Handler {
	return HandlerOf(func(context.Context) (Cluster, error) {
		s := snapshot()
		if s == nil {
			return Cluster{}, errStarting
		}
		return Cluster{Snapshot: s, NoServices: errAgentServices}, nil
	})
}

var errStarting = errors.New("the agent is starting and has nothing in force yet")

// HandlerOf answers questions about a cluster: GET ?from=&to=&port=&namespace=, with output=text for words, and
// colour=1 for words in colours, instead of JSON.
func HandlerOf(cluster func(context.Context) (Cluster, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(VerdictHeader, "none")
		c, err := cluster(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		v := r.URL.Query()
		a, err := Ask(c, Question{
			From: v.Get("from"), To: v.Get("to"), Port: v.Get("port"), Namespace: v.Get("namespace"),
		})
		switch {
		case errors.Is(err, ErrNotFound):
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set(VerdictHeader, a.Verdict.String())
		// The client that went away is the only possible failure, and nobody is left to tell.
		if v.Get("output") == "text" {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_ = a.WriteText(w, term.Style{Colour: v.Get("colour") != ""})
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = a.WriteJSON(w)
	})
}

// errAgentServices is the answer of agents to questions about services, which they do not follow.
var errAgentServices = fmt.Errorf("%w: an agent knows pods and addresses, not services; ask about a pod behind it",
	ErrQuestion)

// WriteJSON writes the answer as indented JSON.
func (a *Answer) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(a); err != nil {
		return fmt.Errorf("writing the explanation: %w", err)
	}
	return nil
}

// Remote is the answer of a running agent, written out by it.
type Remote struct {
	Verdict engine.Action
	Body    []byte
}

// AskAgent asks the running agent whose paths are below base for words in a style, or for JSON if style is nil.
func AskAgent(
	ctx context.Context, client *http.Client, base url.URL, q Question, style *term.Style,
) (Remote, error) {
	v := url.Values{"from": {q.From}, "to": {q.To}, "port": {q.Port}, "namespace": {q.Namespace}}
	if style != nil {
		v.Set("output", "text")
		if style.Colour {
			v.Set("colour", "1")
		}
	}
	u := base.JoinPath(Path)
	u.RawQuery = v.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return Remote{}, fmt.Errorf("asking the agent: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		var outer *url.Error // says the whole question once more
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return Remote{}, fmt.Errorf("no answer from the agent: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return Remote{}, fmt.Errorf("reading the agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return Remote{}, statusError(resp, body)
	}
	r := Remote{Body: body}
	if resp.Header.Get(VerdictHeader) == engine.Allow.String() {
		r.Verdict = engine.Allow
	}
	return r, nil
}

// maxMessage bounds what is shown of an answer that is none.
const maxMessage = 500

func statusError(resp *http.Response, body []byte) error {
	message := strings.TrimSpace(string(body[:min(len(body), maxMessage)]))
	switch {
	case resp.Header.Get(VerdictHeader) == "":
		var status struct{ Message string } // of an API server in between
		if json.Unmarshal(body, &status) == nil && status.Message != "" {
			message = status.Message
		}
		return fmt.Errorf("what answers does not explain (%s: %s); is it an agent of this version?", resp.Status, message)
	case resp.StatusCode == http.StatusBadRequest:
		return fmt.Errorf("%w: %s", ErrQuestion, strings.TrimPrefix(message, ErrQuestion.Error()+": "))
	}
	return errors.New(message)
}
