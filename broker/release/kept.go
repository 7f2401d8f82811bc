package release

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/writ-sh/writ/schemas"
)

// foldVersion is that of the fold and of the form in which it is kept. What
// another version kept is folded anew: raise it where Step comes to another
// state than it did.
const foldVersion = 2

// coreFile is a Core as it is kept from one start to the next.
type coreFile struct {
	Version int                   `json:"version"`
	State   json.RawMessage       `json:"state"` // with the capabilities under which the open actions were admitted, in their order
	Open    map[uint64]itemFile   `json:"open"`
	Pairs   []pairFile            `json:"pairs"`
	IDs     map[string][]usedFile `json:"ids"`
}

type itemFile struct {
	Event   *schemas.Event   `json:"event"`
	Stage   stage            `json:"stage"`
	Tries   int              `json:"tries"`
	Next    time.Time        `json:"next"`
	Told    bool             `json:"told"`
	First   uint64           `json:"first"`
	Reserve int64            `json:"reserve"`
	EndKind schemas.Kind     `json:"end_kind"`
	Refusal *schemas.Refusal `json:"refusal"`
}

type pairFile struct {
	From  string   `json:"from"`
	To    string   `json:"to"`
	Queue []uint64 `json:"queue"`
}

type usedFile struct {
	Key    string         `json:"key"`
	Digest schemas.Digest `json:"digest"`
	Seq    uint64         `json:"seq"`
	Time   time.Time      `json:"time"`
}

// Marshal gives all that the core knows, the same bytes for the same fold.
func (c *Core) Marshal() []byte {
	f := coreFile{Version: foldVersion, Open: make(map[uint64]itemFile, len(c.open)), IDs: make(map[string][]usedFile, len(c.ids))}
	var grants []*schemas.Live
	for _, seq := range slices.Sorted(maps.Keys(c.open)) {
		it := c.open[seq]
		f.Open[seq] = itemFile{it.ev, it.stage, it.tries, it.next, it.told, it.first, it.reserve, it.endKind, it.refusal}
		grants = append(grants, it.grant)
	}
	f.State = c.state.Keep(grants)
	for p, line := range c.pairs {
		f.Pairs = append(f.Pairs, pairFile{p.from, p.to, line.queue})
	}
	slices.SortFunc(f.Pairs, func(a, b pairFile) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	for agent, s := range c.ids {
		used := make([]usedFile, len(s.order))
		for i, key := range s.order {
			u := s.keys[key]
			used[i] = usedFile{key, u.digest, u.seq, u.time}
		}
		f.IDs[agent] = used
	}
	return schemas.Marshal(f)
}

// OpenCore undoes Marshal. It checks nothing but the form: whoever kept the
// bytes must know them for those that were given.
func OpenCore(b []byte) (*Core, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var f coreFile
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("release: kept fold: %w", err)
	}
	if f.Version != foldVersion || f.State == nil {
		return nil, fmt.Errorf("release: the kept fold is of version %d, and this program folds by version %d", f.Version, foldVersion)
	}
	state, grants, err := schemas.OpenState(f.State)
	if err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	if len(grants) != len(f.Open) {
		return nil, errors.New("release: the kept fold has not the capabilities of what is open")
	}
	c := NewCore()
	c.state = state
	for n, seq := range slices.Sorted(maps.Keys(f.Open)) {
		it := f.Open[seq]
		if it.Event == nil || it.Event.Seq != seq {
			return nil, fmt.Errorf("release: the kept fold has no event for what is open under %d", seq)
		}
		c.open[seq] = &item{it.Event, it.Stage, it.Tries, it.Next, it.Told, it.First, grants[n], it.Reserve, it.EndKind, it.Refusal}
		c.schedule(seq)
	}
	for _, p := range f.Pairs {
		for _, seq := range p.Queue {
			if c.open[seq] == nil {
				return nil, fmt.Errorf("release: the kept fold queues %d, which is not open", seq)
			}
		}
		c.pairs[pair{p.From, p.To}] = &pairLine{queue: p.Queue}
	}
	for agent, used := range f.IDs {
		s := &seen{keys: make(map[string]firstUse, len(used))}
		for _, u := range used {
			s.keys[u.Key] = firstUse{u.Digest, u.Seq, u.Time}
			s.order = append(s.order, u.Key)
		}
		c.ids[agent] = s
	}
	return c, nil
}

// Seq is the last event folded.
func (c *Core) Seq() uint64 { return c.state.Seq }

// Oldest is the oldest event whose body may be needed yet; none where nothing
// is open.
func (c *Core) Oldest() (seq uint64, ok bool) {
	for s := range c.open {
		if !ok || s < seq {
			seq, ok = s, true
		}
	}
	return seq, ok
}

// ErrNotEnded is matched where something of an agent is still under way.
var ErrNotEnded = errors.New("not ended yet")

// Forget drops all that is known of an agent, as a fold would be without its
// events. It must have been killed or removed: then nothing of it is open.
func (c *Core) Forget(agent string) error {
	if a := c.state.Agents[agent]; a != nil && a.Lock != schemas.Killed {
		return fmt.Errorf("release: %s is not killed", agent)
	}
	for seq, it := range c.open {
		if it.ev.Agent == agent {
			return fmt.Errorf("release: %d of %s is %w", seq, agent, ErrNotEnded)
		}
	}
	c.state.Forget(agent)
	delete(c.ids, agent)
	return nil
}

// entries is a measure of what Marshal has to write.
func (c *Core) entries() int {
	n := len(c.open) + len(c.state.Agents)
	for _, s := range c.ids {
		n += len(s.order)
	}
	return n
}

// A keeper folds the log a second time, up to the newest mark and without
// clock: what it keeps is the fold that a start would come to, and all that
// follows from it has been carried out.
type keeper struct {
	core  *Core
	queue []*schemas.Event // behind the core
	mark  uint64           // all up to it may be folded
	kept  uint64           // sequence of the fold that was kept last
}

// keepEvery is the least number of events from one kept fold to the next.
const keepEvery = 8192

// unmarkedMost bounds the events that no mark covers.
const unmarkedMost = 4096

func (k *keeper) take(e *schemas.Event) {
	k.queue = append(k.queue, e)
	if e.Kind == schemas.ReleaseMark {
		k.mark = max(k.mark, min(e.Ref, e.Seq))
	}
}

// due takes out of the queue what may be folded.
func (k *keeper) due() []*schemas.Event {
	n, _ := slices.BinarySearchFunc(k.queue, k.mark, func(e *schemas.Event, mark uint64) int {
		if e.Seq <= mark {
			return -1
		}
		return 1
	})
	out := k.queue[:n:n]
	k.queue = slices.Clone(k.queue[n:])
	return out
}

func (k *keeper) fold(events []*schemas.Event) error {
	for _, e := range events {
		if _, err := k.core.Step(e); err != nil {
			return err
		}
	}
	return nil
}

// Restore begins with a fold that was kept. Replay then goes on behind it.
func (r *Release) Restore(kept []byte) error {
	live, err := OpenCore(kept)
	if err != nil {
		return err
	}
	shadow, err := OpenCore(kept)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.core, r.keep = live, keeper{core: shadow, mark: shadow.Seq(), kept: shadow.Seq()}
	r.seq = live.Seq()
	return nil
}

// keepLoop keeps the fold from time to time, and at the end.
func (r *Release) keepLoop(done <-chan struct{}) error {
	if r.Keep == nil {
		return nil
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-done:
			return r.keepIfDue(1)
		case <-t.C:
			if err := r.keepIfDue(keepEvery); err != nil {
				return err
			}
		}
	}
}

// keepIfDue folds up to the newest mark, and keeps the fold where at least so
// many events lie behind the one before.
func (r *Release) keepIfDue(least uint64) error {
	r.kmu.Lock()
	defer r.kmu.Unlock()
	if err := r.keepUp(); err != nil {
		return err
	}
	if least > 1 {
		least = max(least, uint64(r.keep.core.entries()))
	}
	if r.keep.core.Seq() < r.keep.kept+least {
		return nil
	}
	if err := r.keepNow(); err != nil {
		// It makes the next start slower, and is no reason to stop.
		r.Logger.Warn("the fold was not kept", "error", err)
		r.keep.kept = r.keep.core.Seq() // not again with the next tick
	}
	return nil
}

// keepUp folds what the newest mark covers. The caller holds kmu.
func (r *Release) keepUp() error {
	r.mu.Lock()
	due := r.keep.due()
	r.mu.Unlock()
	if err := r.keep.fold(due); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

// keepNow keeps the fold. The caller holds kmu.
func (r *Release) keepNow() error {
	seq := r.keep.core.Seq()
	if err := r.Keep(seq, r.keep.core.Marshal()); err != nil {
		return fmt.Errorf("release: keep the fold up to %d: %w", seq, err)
	}
	r.keep.kept = seq
	return nil
}

// KeepFor keeps the fold as it is now, and says up to which sequence events
// are not needed any more: neither to fold nor to deliver.
func (r *Release) KeepFor() (free uint64, err error) {
	r.kmu.Lock()
	defer r.kmu.Unlock()
	if r.Keep == nil {
		return 0, errors.New("release: the fold is not kept anywhere")
	}
	if err := r.keepUp(); err != nil {
		return 0, err
	}
	if r.keep.core.Seq() > 0 { // else nothing was released yet, and there is no fold
		if err := r.keepNow(); err != nil {
			return 0, err
		}
	}
	free = r.keep.kept
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range []*Core{r.core, r.keep.core} {
		if oldest, ok := c.Oldest(); ok {
			free = min(free, oldest-1)
		}
	}
	return free, nil
}

// Forget drops a killed or removed agent from what is known and from the fold
// that is kept: its events are erased.
func (r *Release) Forget(agent string) error {
	r.kmu.Lock()
	defer r.kmu.Unlock()
	if err := r.keepUp(); err != nil {
		return err
	}
	r.mu.Lock()
	err := r.core.Forget(agent)
	if err == nil {
		err = r.keep.core.Forget(agent)
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	// Twice: the fold before is kept as well, in case the newest is lost.
	if r.Keep == nil {
		return nil
	}
	return errors.Join(r.keepNow(), r.keepNow())
}
