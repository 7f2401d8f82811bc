package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/ledger/witness"
	"github.com/writ-sh/writ/schemas"
)

const (
	publishedFile = "published"
	publishedTemp = "published.new"

	publishPause = signPause / 4          // between looks at what was signed
	askWithin    = 10 * time.Second       // for a witness to answer
	graceWithin  = 500 * time.Millisecond // for the others, once the policy is met
	backoffFirst = time.Second            // before a witness is asked again that failed
	backoffLast  = time.Minute            // doubled up to this
	patience     = 5 * time.Minute        // until an unmet policy is an alarm
	showWait     = 2 * time.Second        // that a bundle waits for its cosignatures
)

// An Alarm is told what makes the ledger's head doubtful.
type Alarm func(ctx context.Context, a schemas.Alarm) error

// A publication is how far the witnesses have come.
type publication struct {
	mu      sync.Mutex
	policy  *witness.Policy // nil: none is set
	last    *signed         // the newest that the policy was met for; nil where there is none
	owed    time.Time       // since when a signed checkpoint has waited; zero where none does
	met     time.Time       // when an earlier process saw the policy met last; zero once this one has
	asked   []*asked
	unmet   bool          // for longer than patience
	changed chan struct{} // closed at the next publication; nil while nobody waits
}

// asked is what is known of a witness.
type asked struct {
	witness.Member
	size  uint64 // cosigned last
	err   error  // why it did not cosign; nil where it did
	wait  time.Duration
	next  time.Time // not to be asked before
	alarm string    // what it was told of in an alarm, "" where nothing was
}

func (a *asked) refused() bool { return errors.Is(a.err, witness.ErrForked) }

// loadPublished reads what was published last. It is proven by its signatures
// alone, so that what is damaged is dropped, and asked for again.
func (l *Ledger) loadPublished() error {
	p := &l.published
	if p.policy = l.o.Witnesses; p.policy == nil {
		return nil
	}
	for _, m := range p.policy.Members() {
		p.asked = append(p.asked, &asked{Member: m})
	}
	if last := l.readPublished(); last != nil && p.policy.Satisfied(last.note) {
		p.last = last
		// A restart does not begin the wait anew: who restarts often would never
		// be told of it.
		if info, err := l.o.FS.Stat(l.o.FS.PathJoin(l.o.AnchorDir, publishedFile)); err == nil {
			p.met = info.ModTime()
		}
	}
	return nil
}

// readPublished gives nil where there is none that the ledger's key has signed.
func (l *Ledger) readPublished() *signed {
	o := &l.o
	msg, err := readFile(o.FS, o.FS.PathJoin(o.AnchorDir, publishedFile))
	if err != nil || msg == nil {
		return nil
	}
	c, err := l.keys().open(msg)
	if err != nil {
		o.Logger.Warn("ledger: what was published last can't be read, and is asked for again", "error", err)
		return nil
	}
	return &signed{Checkpoint: c, note: msg}
}

// Publish shows each signed checkpoint to the policy's witnesses, until the
// context ends. Without a policy it only waits for that. It must run once at a
// time.
func (l *Ledger) Publish(ctx context.Context, c *http.Client, alarm Alarm) error {
	tick := time.NewTicker(publishPause)
	defer tick.Stop()
	for l.published.policy != nil {
		select {
		case now := <-tick.C:
			if err := l.publishRound(ctx, now, c, alarm); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
	<-ctx.Done()
	return nil
}

// PublishLast shows the last checkpoint before the ledger is closed, to all
// witnesses, once.
func (l *Ledger) PublishLast(ctx context.Context, c *http.Client, alarm Alarm) error {
	if l.published.policy == nil || l.guard.err() != nil {
		return nil
	}
	return l.publishRound(ctx, time.Now(), c, alarm)
}

// publishRound asks the witnesses that are due for cosignatures of the newest
// checkpoint. An error means that what was published can't be kept.
func (l *Ledger) publishRound(ctx context.Context, now time.Time, c *http.Client, alarm Alarm) error {
	cur, p := l.current.Load(), &l.published
	due := p.begin(cur, now)
	var kept error
	if len(due) > 0 {
		kept = l.gatherCosignatures(ctx, cur, due, c, now)
	}
	for _, a := range p.alarms(cur, now) {
		l.o.Logger.Error("ledger: alarm: "+a.Detail, "what", a.What, "witness", a.Witness, "size", a.Size, "witness_size", a.WitnessSize)
		if err := alarm(ctx, a); err != nil {
			l.o.Logger.Error("ledger: the alarm is not in the log", "error", err)
		}
	}
	return kept
}

// begin lists the witnesses to ask about a checkpoint.
func (p *publication) begin(cur *signed, now time.Time) (due []*asked) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// One that was published and is longer than what is signed now does not
	// end the asking: the witnesses will say what they have seen.
	if p.last != nil && p.last.Checkpoint == cur.Checkpoint || cur.Size == 0 {
		return nil
	}
	if p.owed.IsZero() {
		p.owed = now
		if !p.met.IsZero() && p.met.Before(now) {
			p.owed = p.met
		}
	}
	for _, a := range p.asked {
		if !now.Before(a.next) {
			due = append(due, a)
		}
	}
	return due
}

// An answer of a witness.
type answer struct {
	from *asked
	line string
	size uint64
	err  error
}

// gatherCosignatures asks all at once, and publishes when the policy is met; what comes
// within a moment after that is added.
func (l *Ledger) gatherCosignatures(ctx context.Context, cur *signed, due []*asked, c *http.Client, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	answers := make(chan answer, len(due))
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, a := range due {
		wg.Go(func() {
			line, size, err := l.ask(ctx, c, a, cur)
			answers <- answer{a, line, size, err}
		})
	}
	p, msg := &l.published, slices.Clone(cur.note)
	met := false
	var kept error
	for range due {
		got := <-answers
		p.note(got, now)
		if got.err != nil || kept != nil {
			continue
		}
		msg = append(msg, got.line...)
		if !met && p.policy.Satisfied(msg) {
			met = true
			grace := time.AfterFunc(graceWithin, cancel)
			defer grace.Stop()
		}
		if met {
			kept = l.publish(&signed{Checkpoint: cur.Checkpoint, note: slices.Clone(msg)})
		}
	}
	return kept
}

// ask asks one witness. What it cosigned last may be another size than is
// known here: it says so, and is asked again from there.
func (l *Ledger) ask(ctx context.Context, c *http.Client, a *asked, cur *signed) (line string, size uint64, err error) {
	size = l.published.sizeOf(a)
	for range 3 {
		if size > cur.Size {
			return "", size, fmt.Errorf("witness %s: %w: it has cosigned %d records, and the ledger signs %d: record %d and what follows are gone", a.Name, witness.ErrForked, size, cur.Size, cur.Size)
		}
		r := witness.Request{Old: size, Checkpoint: cur.note}
		if size > 0 {
			if r.Proof, err = l.growth(size, cur.Checkpoint); err != nil {
				return "", size, err
			}
		}
		line, err = a.Add(ctx, c, r)
		var stale *witness.StaleError
		if !errors.As(err, &stale) {
			if err == nil {
				size = cur.Size
			}
			return line, size, err
		}
		size = stale.Size
	}
	return "", size, err
}

// growth proves that the tree of a checkpoint has grown from that of its first
// size records.
func (l *Ledger) growth(size uint64, to proof.Checkpoint) ([]proof.Hash, error) {
	if size == to.Size {
		return nil, nil
	}
	path, err := tlog.ProveTree(int64(to.Size), int64(size), l.hashes(to))
	if err != nil {
		return nil, fmt.Errorf("prove that %d records grew from %d: %w", to.Size, size, err)
	}
	return path, nil
}

func (p *publication) sizeOf(a *asked) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return a.size
}

// note keeps what a witness answered.
func (p *publication) note(got answer, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := got.from
	a.size, a.err = got.size, got.err
	if got.err == nil {
		a.wait, a.next, a.alarm = 0, time.Time{}, ""
		return
	}
	a.wait = min(max(2*a.wait, backoffFirst), backoffLast)
	a.next = now.Add(a.wait)
}

// publish keeps a cosigned checkpoint, and then shows it.
func (l *Ledger) publish(s *signed) error {
	fs, dir := l.o.FS, l.o.AnchorDir
	temp := fs.PathJoin(dir, publishedTemp)
	err := writeFile(fs, temp, s.note)
	if err == nil {
		err = fs.Rename(temp, fs.PathJoin(dir, publishedFile))
	}
	if err == nil {
		err = syncDir(fs, dir)
	}
	if err != nil {
		return fmt.Errorf("keep what was published: %w", err)
	}
	p := &l.published
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.owed, p.met, p.unmet = s, time.Time{}, time.Time{}, false
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
	return nil
}

// alarms gives each alarm once, until what it was about has passed.
func (p *publication) alarms(cur *signed, now time.Time) (out []schemas.Alarm) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.asked {
		if !a.refused() || a.alarm != "" {
			continue
		}
		a.alarm = schemas.AlarmForked
		if a.size > cur.Size {
			a.alarm = schemas.AlarmShortened
		}
		out = append(out, schemas.Alarm{What: a.alarm, Witness: a.Name, Size: cur.Size, WitnessSize: a.size, Detail: a.err.Error()})
	}
	if !p.owed.IsZero() && now.Sub(p.owed) >= patience && !p.unmet {
		p.unmet = true
		out = append(out, schemas.Alarm{What: schemas.AlarmUnwitnessed, Size: cur.Size, Detail: p.why(now).Error()})
	}
	return out
}

func (p *publication) why(now time.Time) error {
	errs := []error{fmt.Errorf("for %v too few witnesses have cosigned what the ledger signs", now.Sub(p.owed).Round(time.Second))}
	for _, a := range p.asked {
		errs = append(errs, a.err)
	}
	return errors.Join(errs...)
}

// alarmed is why the ledger's health fails: a witness refuses, or the policy
// has not been met for long.
func (p *publication) alarmed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.asked {
		if a.refused() {
			return a.err
		}
	}
	if p.unmet {
		return p.why(time.Now())
	}
	return nil
}

// state tells operators; nil where no policy is set.
func (p *publication) state(now time.Time) *schemas.Published {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.policy == nil {
		return nil
	}
	s := &schemas.Published{Witnesses: []schemas.WitnessState{}}
	if p.last != nil {
		s.Size, s.Checkpoint = p.last.Size, string(p.last.note)
	}
	if !p.owed.IsZero() {
		s.UnmetFor = max(0, now.Sub(p.owed).Seconds())
	}
	for _, a := range p.asked {
		w := schemas.WitnessState{Name: a.Name, URL: a.URL, Size: a.size, Refused: a.refused()}
		if a.err != nil {
			w.Error = a.err.Error()
		}
		s.Witnesses = append(s.Witnesses, w)
	}
	slices.SortFunc(s.Witnesses, func(a, b schemas.WitnessState) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

// cosigned gives the published checkpoint in the place of one that it covers,
// and waits a moment for it. Where it does not come, what is signed alone has
// to do: who demands cosignatures will say that they are missing.
func (l *Ledger) cosigned(ctx context.Context, cur *signed) *signed {
	p := &l.published
	if p.policy == nil {
		return cur
	}
	ctx, cancel := context.WithTimeout(ctx, showWait)
	defer cancel()
	for {
		p.mu.Lock()
		if p.last != nil && p.last.Size >= cur.Size {
			defer p.mu.Unlock()
			return p.last
		}
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return cur
		}
	}
}
