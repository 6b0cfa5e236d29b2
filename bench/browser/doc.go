// Package browser tests the page of agents in a browser, over a lab with real packets. It is a module of its own, since
// driving a browser takes libraries that nothing else needs.
package browser
