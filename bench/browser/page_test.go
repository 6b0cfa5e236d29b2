package browser

import (
	"bytes"
	"context"
	"image"
	"image/color"
	"image/png"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// The size of the pictures, in pixels.
const width, height = 1440, 1360

// browser is one that notes what it complains of, and what it asks for.
type browser struct {
	context.Context
	t *testing.T

	mu         sync.Mutex
	complaints []string
	asked      map[string]bool // hosts
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("the page is tested in chromium: run make test-page, which installs it where it may")
	}
	profile, err := os.MkdirTemp("", "firstpacket-browser-") //nolint:usetesting // removed by removeAll
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, profile) })
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(profile),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("hide-scrollbars", true), chromedp.WindowSize(width, height),
	)
	// Not the test's context, whose end would kill the browser before it can close.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("close the browser: %v", err)
		}
		cancel()
	})
	b := &browser{Context: ctx, t: t, asked: map[string]bool{}}
	chromedp.ListenTarget(ctx, b.note)
	b.do(network.Enable(), log.Enable(), runtime.Enable(), chromedp.EmulateViewport(width, height))
	return b
}

// removeAll removes the browser's directory, into which its last processes may be writing still.
func removeAll(t *testing.T, dir string) {
	var err error
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
		if err = os.RemoveAll(dir); err == nil {
			return
		}
	}
	t.Error(err)
}

func (b *browser) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded:
		b.complaints = append(b.complaints, e.Entry.Text)
	case *runtime.EventExceptionThrown:
		b.complaints = append(b.complaints, e.ExceptionDetails.Error())
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(e.Request.URL); err == nil {
			b.asked[u.Host] = true
		}
	}
}

func (b *browser) do(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// count is the number of elements that a selector finds.
func (b *browser) count(selector string) (n int) {
	b.t.Helper()
	b.do(chromedp.Evaluate(`document.querySelectorAll("`+selector+`").length`, &n))
	return n
}

// picture takes a picture of the window, and keeps it in bench/out, named after what it shows.
func (b *browser) picture(what, scheme string) image.Image {
	b.t.Helper()
	var raw []byte
	b.do(
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}),
		chromedp.Sleep(2*time.Second), // until rows have faded in
		chromedp.ActionFunc(func(ctx context.Context) (err error) {
			raw, err = page.CaptureScreenshot().Do(ctx)
			return err
		}),
	)
	out := filepath.Join("..", "out")
	if err := os.MkdirAll(out, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(out, what+"-"+scheme+".png"), raw, 0o644); err != nil {
		b.t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(raw))
	if err != nil {
		b.t.Fatal(err)
	}
	return picture
}

// TestPage looks at the page of a lab's agents: what they admitted and denied is there, in light and in dark.
func TestPage(t *testing.T) {
	sockets, manifests := filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "shop")
	start(t, "Ctrl-C ends", "lab", "--watch", "--sockets", sockets, "--dir", manifests)
	address := start(t, "http://", "ui", "--listen", "127.0.0.1:0", "--manifests", manifests,
		"--agent", "unix:"+filepath.Join(sockets, "node-a.sock"), "--agent", "unix:"+filepath.Join(sockets, "node-b.sock"))
	b := newBrowser(t)
	b.do(
		chromedp.Navigate(address), chromedp.WaitVisible("#graph path.allow", chromedp.ByQuery),
		chromedp.WaitVisible("#graph path.deny", chromedp.ByQuery), chromedp.WaitVisible("#flows tbody tr", chromedp.ByQuery),
	)
	for selector, least := range map[string]int{
		"#graph path.allow": 10, "#graph path.deny": 20, "#graph g.row": 12, "#flows tbody tr": 50, "#policies tbody tr": 4,
	} {
		if n := b.count(selector); n < least {
			t.Errorf("%d of %s, want %d or more", n, selector, least)
		}
	}
	for selector, want := range map[string]string{
		"#n-agents": "2", "#s-agents": "all enforce", "#live": "live", "#graph": "database", "#flows": "no-rule-matches",
	} {
		var text string
		b.do(chromedp.Text(selector, &text, chromedp.ByQuery))
		if !strings.Contains(text, want) {
			t.Errorf("%s says %q, want %q", selector, text, want)
		}
	}

	t.Run("explain", func(t *testing.T) { explain(t, b) })
	t.Run("filter", func(t *testing.T) { filter(t, b) })
	t.Run("possible", func(t *testing.T) { possible(t, b) })
	t.Run("looks", func(t *testing.T) { looks(t, b) })

	b.quiet(address)
}

// quiet checks that the browser had nothing to complain of and asked nobody but the page's server.
func (b *browser) quiet(address string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, complaint := range b.complaints {
		b.t.Errorf("the browser complains: %s", complaint)
	}
	if host := strings.TrimPrefix(address, "http://"); len(b.asked) != 1 || !b.asked[host] {
		b.t.Errorf("the page asks %v, want %s alone", b.asked, host)
	}
}

// TestPolicyOnly looks at manifests without any agent: the graph is what policy says, and can be told from traffic.
func TestPolicyOnly(t *testing.T) {
	address := start(t, "http://", "ui", "--listen", "127.0.0.1:0",
		"--manifests", filepath.Join("..", "..", "cmd", "firstpacket", "testdata", "shop"))
	b := newBrowser(t)
	b.do(chromedp.Navigate(address), chromedp.WaitVisible("#graph path.may", chromedp.ByQuery))
	for selector, want := range map[string]int{
		"#graph path.allow": 0, "#graph path.deny": 0, "#possible:not([hidden])": 1,
	} {
		if n := b.count(selector); n != want {
			t.Errorf("%d of %s, want %d", n, selector, want)
		}
	}
	for _, line := range []string{
		"shop/web → shop/db 5432/TCP: some may", "shop/db → shop/db every port: may not",
		"ops/tool → shop/web every port: may",
		"198.51.100.0/24 → shop/db every port: may", "other addresses → shop/db every port: may not",
	} {
		if !b.drawn(line) {
			t.Errorf("no line %q in %q", line, b.lines())
		}
	}
	b.picture("policy", "light")
	b.quiet(address)
}

// lines are what the lines of the graph stand for.
func (b *browser) lines() (all []string) {
	b.t.Helper()
	b.do(chromedp.Evaluate(`[...document.querySelectorAll("#graph path title")].map(t => t.textContent)`, &all))
	return all
}

func (b *browser) drawn(beginning string) bool {
	return slices.ContainsFunc(b.lines(), func(line string) bool { return strings.HasPrefix(line, beginning) })
}

// possible: what policy says of connections that nobody has tried is there, thin, until it is switched off; what was
// seen is told as that alone.
func possible(t *testing.T, b *browser) {
	b.do(chromedp.WaitVisible("#graph path.may, #graph path.maynot", chromedp.ByQuery))
	seen := b.count("#graph path.allow, #graph path.deny")
	if !b.drawn("shop/frontend → shop/backend 8000/TCP: allow") || b.drawn("shop/frontend → shop/backend 8000/TCP: may") {
		t.Errorf("what was seen: %q", b.lines())
	}
	b.do(chromedp.Click("#possible input", chromedp.ByQuery))
	if n := b.count("#graph path.may, #graph path.maynot"); n != 0 || b.count("#graph path") < seen {
		t.Errorf("switched off, and %d lines of policy are there", n)
	}
	b.do(chromedp.Click("#possible input", chromedp.ByQuery))
}

// explain fills in the form, by hand and from a denied flow.
func explain(t *testing.T, b *browser) {
	var verdict, text string
	b.do(
		chromedp.SendKeys("[name=from]", "shop/frontend-1", chromedp.ByQuery),
		chromedp.SendKeys("[name=to]", "shop/backend", chromedp.ByQuery),
		chromedp.SendKeys("[name=port]", "8000\r", chromedp.ByQuery),
		chromedp.WaitVisible("#answer pre.allow", chromedp.ByQuery), chromedp.Text("#answer", &text, chromedp.ByQuery),
	)
	if !strings.Contains(text, "NetworkPolicy/shop/backend") {
		t.Errorf("the answer names no policy: %s", text)
	}
	b.do(
		chromedp.Click("#flows tbody tr button", chromedp.ByQuery),
		chromedp.WaitVisible("#answer pre.deny", chromedp.ByQuery),
		chromedp.Evaluate(`document.querySelector("#answer pre").className`, &verdict),
	)
	if verdict != "deny" {
		t.Errorf("a denied flow is explained as %q", verdict)
	}
}

// filter leaves what matches, everywhere.
func filter(t *testing.T, b *browser) {
	all := b.count("#flows tbody tr")
	b.do(chromedp.SendKeys("#filter", "scraper 5432", chromedp.ByQuery))
	if n := b.count("#flows tbody tr"); n == 0 || n >= all {
		t.Errorf("%d of %d flows match", n, all)
	}
	if n := b.count("#graph path"); n != 1 {
		t.Errorf("%d lines match, want 1", n)
	}
	b.do(chromedp.Evaluate(
		`{ const f = document.querySelector("#filter"); f.value = ""; f.dispatchEvent(new Event("input")) }`, nil,
	))
	if n := b.count("#flows tbody tr"); n != all {
		t.Errorf("%d flows without a filter, want %d", n, all)
	}
}

// looks takes pictures: the main view has its lines of both colours, on a ground that the user's scheme asks for, and
// nothing hangs over its edges.
func looks(t *testing.T, b *browser) {
	for scheme, dark := range map[string]bool{"light": false, "dark": true} {
		picture := b.picture("page", scheme)
		if size := picture.Bounds().Size(); size != (image.Point{width, height}) {
			t.Errorf("%s: %v", scheme, size)
		}
		var green, red, ground int
		for y := range height {
			for x := range width {
				r, g, bl, _ := picture.At(x, y).RGBA()
				switch {
				case g > r+0x4000 && g > bl+0x1800:
					green++
				case r > g+0x4000 && r > bl+0x4000:
					red++
				}
				if (luma(picture.At(x, y)) < 64) == dark {
					ground++
				}
			}
		}
		if green < 1000 || red < 1000 {
			t.Errorf("%s: %d green and %d red pixels: lines are missing", scheme, green, red)
		}
		if ground < width*height*8/10 {
			t.Errorf("%s: only %d pixels are of that scheme's ground", scheme, ground)
		}
	}
	var over bool
	b.do(chromedp.Evaluate(`document.documentElement.scrollWidth > document.documentElement.clientWidth`, &over))
	if over {
		t.Error("the page is wider than the window")
	}
	var unnamed int
	b.do(chromedp.Evaluate(`[...document.querySelectorAll("input, button")].filter(e =>
		!e.labels?.length && !e.getAttribute("aria-label") && !e.textContent.trim()).length`, &unnamed))
	if unnamed > 0 {
		t.Errorf("%d controls have no name", unnamed)
	}
}

// luma is the brightness of a pixel, 0 to 255.
func luma(c color.Color) uint8 { return color.GrayModel.Convert(c).(color.Gray).Y }
