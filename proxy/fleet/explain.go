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

// Explained is what one agent made of a question.
type Explained struct {
	Agent *Agent
	explain.Remote
	Err error
}

// Explain asks all agents at once, in words of a style, or for JSON if that is nil. Each of them judges its own node's
// side.
func Explain(ctx context.Context, agents []*Agent, q explain.Question, style *term.Style) []Explained {
	return each(ctx, agents, func(ctx context.Context, a *Agent) Explained {
		remote, err := explain.AskAgent(ctx, a.client, a.base, q, style)
		if err != nil {
			err = fmt.Errorf("%s: %w", a.Name, err)
		}
		return Explained{a, remote, err}
	})
}

// Verdict is allow if all agents allow. One that does not answer allows nothing.
func Verdict(all []Explained) engine.Action {
	for i := range all {
		if all[i].Err != nil || all[i].Verdict != engine.Allow {
			return engine.Deny
		}
	}
	return engine.Allow
}

// Words are the answers of agents that were asked for words, one after another.
func Words(all []Explained) []byte {
	var text bytes.Buffer
	for i := range all {
		if len(all) > 1 {
			fmt.Fprintf(&text, "Asked %s:\n\n", all[i].Agent.Name)
		}
		if all[i].Err != nil {
			fmt.Fprintf(&text, "%v\n\n", all[i].Err)
			continue
		}
		text.Write(append(bytes.TrimSpace(all[i].Body), "\n\n"...))
	}
	return append(bytes.TrimSpace(text.Bytes()), '\n')
}

// Explainer answers explain's questions, in words, from agents that are asked at their addresses.
func Explainer(agents []*Agent) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := r.URL.Query()
		q := explain.Question{From: v.Get("from"), To: v.Get("to"), Port: v.Get("port"), Namespace: v.Get("namespace")}
		all := Explain(r.Context(), agents, q, &term.Style{})
		w.Header().Set(explain.VerdictHeader, Verdict(all).String())
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write(Words(all)) // a client that went away is nobody to tell
	})
}
