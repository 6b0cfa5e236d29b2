package flowstream

import (
	"net/http"
	"strconv"
	"time"
)

// Path is where an agent serves Handler.
const Path = "/flows"

// Handler answers GET ?recent=N&follow=1 with lines of the log: the newest N that are remembered, or all of them
// without recent, and with follow each further one until the client goes.
func Handler(h *Hub) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := Request{Recent: -1, Follow: r.FormValue("follow") != ""}
		if text := r.FormValue("recent"); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil {
				http.Error(w, "recent is a number of lines", http.StatusBadRequest)
				return
			}
			req.Recent = n
		}
		sub := h.Subscribe(req, nil)
		defer sub.Close()
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.Header().Set("Cache-Control", "no-store")
		out := http.NewResponseController(w)
		// The server's own limits are for requests and answers that end soon.
		if out.SetReadDeadline(time.Time{}) != nil {
			return
		}
		send := func(lines ...[]byte) bool {
			if out.SetWriteDeadline(time.Now().Add(sendTimeout)) != nil {
				return false
			}
			for _, line := range lines {
				if _, err := w.Write(line); err != nil {
					return false
				}
			}
			return out.Flush() == nil
		}
		if !send(sub.Recent...) {
			return
		}
		for {
			select {
			case line, ok := <-sub.Lines():
				if !ok || !send(line) {
					return
				}
			case <-r.Context().Done():
				return
			}
		}
	})
}
