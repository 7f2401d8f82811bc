package proof

// Against holds evidence against older evidence of the same log, and finds that
// one of them is of a history that the other contradicts, though both are
// signed. Errors are of type *BundleError and match ErrForked; they name the
// first record of the older that the newer has otherwise, or no longer.
//
// What it does not find: a change in a record that neither shows. A witness
// does, who saw the tree.
func (ev *Evidence) Against(older *Evidence) error {
	if o, n := older.Checkpoint, ev.Checkpoint; o.Origin != n.Origin {
		return bad(0, ErrForked, "they are of two logs, %q and %q", o.Origin, n.Origin)
	}
	now := make(map[uint64]*Entry, len(ev.Entries))
	for i := range ev.Entries {
		now[ev.Entries[i].Record.Index] = &ev.Entries[i]
	}
	for i := range older.Entries {
		then := &older.Entries[i].Record
		if then.Index >= ev.Checkpoint.Size {
			return bad(then.StreamSeq, ErrForked, "the older bundle proves record %d, and the newer log ends at %d", then.Index, ev.Checkpoint.Size)
		}
		e := now[then.Index]
		if e == nil || e.Record == *then {
			continue
		}
		return bad(then.StreamSeq, ErrForked, "record %d is another in each", then.Index)
	}
	o, n := older.Checkpoint, ev.Checkpoint
	switch {
	case n.Size < o.Size:
		return bad(0, ErrForked, "the older bundle's log had %d records, and the newer has %d", o.Size, n.Size)
	case n.Size == o.Size && n.Root != o.Root:
		return bad(0, ErrForked, "both logs have %d records, and other roots; no record that differs is in both bundles", n.Size)
	}
	return nil
}
