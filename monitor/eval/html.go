package eval

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
)

//go:embed report.html.tmpl
var page string

// The page's drawings are SVG paths in a square of this side.
const side = 240

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"percent":    func(x float64) string { return fmt.Sprintf("%.1f %%", 100*x) },
	"interval":   func(i Interval) string { return fmt.Sprintf("%.1f–%.1f", 100*i[0], 100*i[1]) },
	"area":       func(x float64) string { return fmt.Sprintf("%.3f", x) },
	"curve":      curve,
	"bars":       bars,
	"rates":      ticks,
	"dots":       dots,
	"coordinate": coordinate,
	"points":     func(p int64) string { return fmt.Sprintf("%+.2f", float64(p)/65536) },
}).Parse(page))

// WriteHTML writes the report as one page that needs nothing else: no script,
// no other file, no network.
func (r *Report) WriteHTML(w io.Writer) error {
	if err := pageTemplate.Execute(w, r); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// curve is the path of a ROC curve. Rates of false alarms are drawn to their
// square root: what matters lies below one in twenty.
func curve(points []Point) string {
	var b strings.Builder
	for i, p := range points {
		op := 'L'
		if i == 0 {
			op = 'M'
		}
		fmt.Fprintf(&b, "%c%.1f %.1f", op, side*sqrt(p.FPR), side*(1-p.TPR))
	}
	return b.String()
}

func coordinate(x float64) string { return fmt.Sprintf("%.1f", x) }

// A tick of the axis of false alarms.
type tick struct{ X, Text string }

func ticks() (out []tick) {
	for _, percent := range []float64{1, 5, 25, 100} {
		out = append(out, tick{coordinate(side * sqrt(percent/100)), fmt.Sprintf("%g %%", percent)})
	}
	return out
}

// A dot on a ROC curve's plane says what one threshold comes to. That of 90 lies
// to the left of that of 70, and so does its name.
type dot struct{ X, Y, TextX, TextY, Side, Title, Text string }

func dots(f Figures) []dot {
	at := func(risk int, r Rates, anchor string, aside float64) dot {
		x, y := side*sqrt(r.FPR), side*(1-r.TPR)
		return dot{coordinate(x), coordinate(y), coordinate(x + aside), coordinate(y + 14), anchor,
			fmt.Sprintf("risk %d: %.1f %% found, %.1f %% false", risk, 100*r.TPR, 100*r.FPR), fmt.Sprint(risk)}
	}
	return []dot{at(70, f.At70, "", 6), at(90, f.At90, "end", -6)}
}

// A bar of a histogram.
type bar struct {
	X, Width, PosY, PosHeight, NegY, NegHeight float64
	Title                                      string
}

// bars are the shares of positives and negatives by highest risk, to their
// square root so that few are seen beside many.
func bars(bins []Bin) []bar {
	pos, neg := 0, 0
	for _, b := range bins {
		pos, neg = pos+b.Positives, neg+b.Negatives
	}
	var out []bar
	width := float64(side) / float64(len(bins))
	for i, b := range bins {
		p, n := side/2*sqrt(share(b.Positives, pos)), side/2*sqrt(share(b.Negatives, neg))
		out = append(out, bar{X: float64(i) * width, Width: width - 1, PosY: side/2 - p, PosHeight: p, NegY: side / 2, NegHeight: n,
			Title: fmt.Sprintf("risk %d to %d: %d hijacked, %d harmless", b.From, min(b.From+4, 100), b.Positives, b.Negatives)})
	}
	return out
}
