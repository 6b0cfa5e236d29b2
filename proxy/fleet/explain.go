package fleet

import (
	"bytes"
	"context"
	"fmt"
	"net/http"

	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/explain"
	"github.com/firstpacket/firstpacket/policycache/term"
)

// Explainer answers explain's questions, in words, from agents that are asked at their addresses. Each of them judges
// its own node's side: where there are several, a connection is allowed if all of them allow it.
func Explainer(agents []*Agent) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := r.URL.Query()
		q := explain.Question{From: v.Get("from"), To: v.Get("to"), Port: v.Get("port"), Namespace: v.Get("namespace")}
		answers := each(r.Context(), agents, func(ctx context.Context, a *Agent) answer {
			remote, err := explain.AskAgent(ctx, a.client, a.base.Host, q, &term.Style{})
			return answer{remote, err}
		})
		var text bytes.Buffer
		verdict := engine.Allow
		for i, got := range answers {
			if len(agents) > 1 {
				fmt.Fprintf(&text, "Asked %s:\n\n", agents[i].Name)
			}
			if got.err != nil {
				fmt.Fprintf(&text, "%v\n\n", got.err)
				verdict = engine.Deny
				continue
			}
			if got.Verdict != engine.Allow {
				verdict = engine.Deny
			}
			text.Write(append(bytes.TrimSpace(got.Body), "\n\n"...))
		}
		w.Header().Set(explain.VerdictHeader, verdict.String())
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write(text.Bytes()) // a client that went away is nobody to tell
	})
}

type answer struct {
	explain.Remote
	err error
}
