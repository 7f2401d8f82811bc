package eval

import (
	"path/filepath"
	"slices"

	"github.com/writ-sh/writ/monitor/traces"
)

// A Set is what an evaluation needs of recorded files.
type Set struct {
	Baseline []*traces.Run // harmless
	Test     []*traces.Run // positives and negatives, in the order of the files
	Unseen   int           // hits without an injected side effect: no call shows them
	Other    int           // neither positive nor negative: attacks that failed, and runs without a call
}

// Load reads recorded files, each once, and keeps the runs that are needed.
// Progress is told how many runs were read.
func Load(baseline, test []string, progress func(runs int)) (*Set, error) {
	s, read := &Set{}, 0
	byFile := map[string][]*traces.Run{}
	for _, path := range slices.Concat(test, baseline) {
		path = filepath.Clean(path)
		if _, done := byFile[path]; done {
			continue
		}
		tested := slices.ContainsFunc(test, func(f string) bool { return filepath.Clean(f) == path })
		byFile[path] = nil
		for run, err := range traces.Open(path) {
			if err != nil {
				return nil, err
			}
			if read++; progress != nil {
				progress(read)
			}
			pos, neg := Positive(run), Negative(run)
			if pos || neg {
				byFile[path] = append(byFile[path], run)
			}
			switch {
			case !tested || pos || neg:
			case run.Hit == 1:
				s.Unseen++
			default:
				s.Other++
			}
		}
	}
	for _, path := range test {
		s.Test = append(s.Test, byFile[filepath.Clean(path)]...)
	}
	for _, path := range baseline {
		for _, run := range byFile[filepath.Clean(path)] {
			if Negative(run) {
				s.Baseline = append(s.Baseline, run)
			}
		}
	}
	return s, nil
}
