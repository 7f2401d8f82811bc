package main

import (
	"strconv"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// A place in the log is a sequence or a time; the zero place is none.
type place struct {
	seq uint64
	at  time.Time
}

// readPlace reads a sequence, an RFC 3339 time, or a duration before now.
func readPlace(flag, text string, now time.Time) (place, error) {
	if text == "" {
		return place{}, nil
	}
	if seq, err := strconv.ParseUint(text, 10, 64); err == nil && seq > 0 {
		return place{seq: seq}, nil
	}
	at, err := readTime(flag, text, now)
	return place{at: at}, err
}

// readTime reads an RFC 3339 time, or a duration before now; zero where there
// is no text.
func readTime(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, misuse("give "+flag+" like 10m, 24h or 2026-03-01T12:00:00Z", "%s %q is neither a duration nor a time", flag, text)
	}
	return at, nil
}

// checkSelection holds what narrows a listing against the grammar of names.
func checkSelection(agent, trace string) error {
	if agent != "" && agent != schemas.Fleet {
		if err := schemas.CheckID("agent", agent); err != nil {
			return misuse("writ status lists the agents", "%w", err)
		}
	}
	if trace != "" {
		if err := schemas.CheckTrace(trace); err != nil {
			return misuse("give --trace as writ issue and writ log show it", "%w", err)
		}
	}
	return nil
}
