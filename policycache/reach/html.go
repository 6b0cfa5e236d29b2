package reach

import (
	"fmt"
	"html/template"
	"io"
)

// page is a whole document without outside resources.
var page = template.Must(template.New("matrix").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Who reaches whom</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
.scroll { overflow: auto; max-height: 85vh; }
table { border-collapse: collapse; }
th, td { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top; }
thead th { position: sticky; top: 0; background: #f4f4f4; }
tbody th { position: sticky; left: 0; background: #f4f4f4; white-space: nowrap; }
.none { background: #f9d6d5; } .part { background: #fdf0c8; } .whole { background: #d8f0d8; } .empty { color: #888; }
</style>
</head>
<body>
<h1>Who reaches whom</h1>
<p>Rows open connections to columns. {{.Legend}}</p>
<div class="scroll">
<table>
<thead><tr><th scope="col">from \ to</th>{{range .Groups}}<th scope="col">{{.Name}}</th>{{end}}</tr></thead>
<tbody>
{{range .Rows}}<tr><th scope="row">{{.Name}}</th>{{range .Cells}}<td class="{{.Class}}">{{.Text}}</td>{{end}}</tr>
{{end}}</tbody>
</table>
</div>
</body>
</html>
`))

type htmlRow struct {
	Name  string
	Cells []htmlCell
}

type htmlCell struct{ Class, Text string }

var extentNames = [...]string{empty: "empty", none: "none", part: "part", whole: "whole"}

// WriteHTML writes a page to look at in a browser.
func (m *Matrix) WriteHTML(w io.Writer) error {
	rows := make([]htmlRow, len(m.Groups))
	for i := range m.Groups {
		rows[i].Name = m.Groups[i].Name
		for j := range m.Groups {
			c := &m.Cells[i][j]
			rows[i].Cells = append(rows[i].Cells, htmlCell{extentNames[m.extent(c)], m.words(c)})
		}
	}
	err := page.Execute(w, struct {
		Legend string
		Groups []Group
		Rows   []htmlRow
	}{m.legend(), m.Groups, rows})
	if err != nil {
		return fmt.Errorf("writing the page: %w", err)
	}
	return nil
}
