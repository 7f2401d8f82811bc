package proof

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/writ-sh/writ/schemas"
)

// A Gap is what a gap record says: an operator accepts that the log lost
// sequences for good.
type Gap struct {
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
	Reason string `json:"reason"`
	Actor  string `json:"actor"`
}

// A Redaction is what a redaction record says: on whose authority an agent's
// contents were erased, and why.
type Redaction struct {
	Authority string `json:"authority"`
	Reason    string `json:"reason"`
}

// A Prune is what a prune record says: the contents of the first so many
// records stand in archives alone. Their leaves stay, and every proof with them.
type Prune struct {
	Records  uint64    `json:"records"`  // from the first of the ledger on
	LastSeq  uint64    `json:"last_seq"` // of the last of them
	Archives []Archive `json:"archives"`
	Reason   string    `json:"reason"`
	Actor    string    `json:"actor"`
}

// An Archive is an evidence bundle that holds what was pruned.
type Archive struct {
	File     string `json:"file"`   // its name, without folder
	SHA256   string `json:"sha256"` // hex
	FirstSeq uint64 `json:"first_seq"`
	LastSeq  uint64 `json:"last_seq"`
}

// Subjects of the ledger's own records.
const (
	GapSubject       = "ledger.gap"
	RedactionSubject = "ledger.redaction"
	PruneSubject     = "ledger.prune"
)

// Evidence is what a bundle proves, once Verify has passed.
type Evidence struct {
	Checkpoint Checkpoint
	// Cosignatures are those that hold, of the policy's witnesses.
	Cosignatures []Cosignature
	// First and Last are the sequences that the records span. Redactions that
	// stand apart behind all others explain erasures, and are not counted.
	First, Last uint64
	// Complete says that no record is missing between First and Last. Only then
	// does what is not in the bundle not stand in that part of the log either.
	Complete bool
	Redacted int // records whose contents were erased, with authority
	Entries  []Entry
}

// An Entry is one proven record, with its content: one of the pointers is set.
type Entry struct {
	Record    Record
	Event     *schemas.Event // of KindEvent
	Gap       *Gap
	Redaction *Redaction
	Prune     *Prune     // of KindPrune
	Handover  *Handover  // of KindHandover
	Redacted  *Redaction // of KindEvent, where the content was erased: on what authority
	// Answered is the sequence of the first answer in the bundle that only who
	// was handed this message can have given; 0 where there is none.
	Answered uint64
}

// What a bundle can be refused for. Every error of Bundle.Verify matches
// exactly one of these, and ErrProof.
var (
	ErrUntrusted     = errors.New("the bundle is under a key that does not count")
	ErrHandover      = errors.New("the bundle's handovers from key to key do not hold")
	ErrBadCheckpoint = errors.New("the checkpoint is not signed by that key")
	ErrUnwitnessed   = errors.New("too few of the policy's witnesses have cosigned the checkpoint")
	ErrForked        = errors.New("the bundles are of two histories")
	ErrMissingLeaf   = errors.New("a record is missing")
	ErrOrder         = errors.New("records are out of order")
	ErrBadLeaf       = errors.New("a leaf is no record")
	ErrNotIncluded   = errors.New("the record is not in the log of this checkpoint")
	ErrChain         = errors.New("the record does not follow the one before it")
	ErrContent       = errors.New("the content is not what the record committed to")
	ErrWithheld      = errors.New("the content is withheld, and no record says that it was erased")
	ErrEvent         = errors.New("the content is no event of this record")
	ErrDelivery      = errors.New("something was delivered that had no earlier record")
	ErrAfterKill     = errors.New("something was released that an agent sent after its kill")
)

// A BundleError says at which sequence a bundle stops proving what it says.
type BundleError struct {
	Seq    uint64 // the first bad one
	Reason error  // one of those above
	Err    error  // more about it
}

func (e *BundleError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("sequence %d: %v", e.Seq, e.Reason)
	}
	return fmt.Sprintf("sequence %d: %v: %v", e.Seq, e.Reason, e.Err)
}

func (e *BundleError) Unwrap() []error { return []error{ErrProof, e.Reason, e.Err} }

func bad(seq uint64, reason error, format string, args ...any) error {
	var why error
	if format != "" {
		why = fmt.Errorf(format, args...)
	}
	return &BundleError{Seq: seq, Reason: reason, Err: why}
}

// Verify holds the bundle against a policy, see the package's documentation for
// what that proves. Errors are of type *BundleError.
func (b *Bundle) Verify(p *Policy) (*Evidence, error) {
	if len(b.Contents) == 0 {
		return nil, bad(0, ErrMissingLeaf, "the bundle lists none")
	}
	first, last := b.Contents[0].Seq, b.Contents[len(b.Contents)-1].Seq
	c, err := b.signedUnder(p, first)
	if err != nil {
		return nil, err
	}
	ev := &Evidence{Checkpoint: c, Entries: make([]Entry, len(b.Contents))}
	if p.witnesses != nil {
		ev.Cosignatures = p.witnesses.Cosigned([]byte(b.Checkpoint))
		if !p.witnesses.Satisfied([]byte(b.Checkpoint)) {
			return nil, bad(first, ErrUnwitnessed, "%d of them have", len(ev.Cosignatures))
		}
	}
	for i := range b.Contents {
		if ev.Entries[i].Record, err = b.leaf(i, c); err != nil {
			return nil, err
		}
	}
	if n := len(b.Contents); len(b.Records) > n {
		return nil, bad(last, ErrOrder, "%d records stand behind what the bundle lists", len(b.Records)-n)
	}
	if err := b.open(ev); err != nil {
		return nil, err
	}
	ev.span()
	return ev, checkStory(ev.Entries)
}

// signedUnder opens the checkpoint under a key that counts.
func (b *Bundle) signedUnder(p *Policy, first uint64) (c Checkpoint, err error) {
	links, err := b.links()
	if err != nil {
		return c, bad(first, ErrHandover, "%w", err)
	}
	key, err := p.key(b.Key, links)
	if err != nil {
		return c, bad(first, ErrUntrusted, "%w", err)
	}
	if err := strictSignatures(b.Checkpoint); err != nil {
		return c, bad(first, ErrBadCheckpoint, "%w", err)
	}
	if c, err = OpenCheckpoint([]byte(b.Checkpoint), key.Verifier); err != nil {
		return c, bad(first, ErrBadCheckpoint, "%w", err)
	}
	if key.until != 0 && c.Size > key.until {
		return c, bad(first, ErrUntrusted, "in the policy it signs %d records at most, and here %d: it is retired, and somebody goes on with it", key.until, c.Size)
	}
	if n := len(links); n > 0 {
		if err := links[n-1].grewTo(c); err != nil {
			return c, bad(first, ErrHandover, "%w", err)
		}
	}
	return c, nil
}

// leaf proves the record that stands at place i.
func (b *Bundle) leaf(i int, c Checkpoint) (r Record, err error) {
	at := b.Contents[i]
	if i > 0 {
		before := b.Contents[i-1]
		if at.Index <= before.Index || at.Seq < before.Seq {
			return r, bad(at.Seq, ErrOrder, "the bundle lists record %d behind record %d", at.Index, before.Index)
		}
	}
	if i >= len(b.Records) || len(b.Records[i].Leaf) == 0 {
		return r, bad(at.Seq, ErrMissingLeaf, "the bundle lists record %d and does not hold it", at.Index)
	}
	leaf := b.Records[i].Leaf
	if r, err = ParseRecord(leaf); err != nil {
		return r, bad(at.Seq, ErrBadLeaf, "%w", err)
	}
	if r.Index != at.Index || r.StreamSeq != at.Seq {
		reason := ErrOrder
		if len(b.Records) < len(b.Contents) {
			reason = ErrMissingLeaf
		}
		return r, bad(at.Seq, reason, "record %d stands in the place of record %d", r.Index, at.Index)
	}
	h := LeafHash(leaf)
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, r.Index, c.Size, h[:], hashes(b.Records[i].Path), c.Root[:]); err != nil {
		return r, bad(at.Seq, ErrNotIncluded, "%w", err)
	}
	if i > 0 && b.Contents[i-1].Index+1 == at.Index && r.Prev != LeafHash(b.Records[i-1].Leaf) || r.Index == 0 && r.Prev != (Hash{}) {
		return r, bad(at.Seq, ErrChain, "")
	}
	return r, nil
}

func hashes(path []byte) [][]byte {
	out := make([][]byte, 0, len(path)/len(Hash{}))
	for len(path) >= len(Hash{}) {
		out, path = append(out, path[:len(Hash{})]), path[len(Hash{}):]
	}
	return out
}

// open opens the contents of proven records.
func (b *Bundle) open(ev *Evidence) error {
	// The last redaction of a pseudonym counts; there never is a second.
	redacted := map[[16]byte]*Entry{}
	for i := range ev.Entries {
		e := &ev.Entries[i]
		if e.Record.Kind != KindRedaction {
			continue
		}
		if err := e.open(&b.Records[i]); err != nil {
			return err
		}
		redacted[e.Record.Agent] = e
	}
	for i := range ev.Entries {
		e, r := &ev.Entries[i], &b.Records[i]
		switch {
		case e.Record.Kind == KindRedaction:
		case len(r.Salt)+len(r.Headers)+len(r.Payload) > 0:
			if err := e.open(r); err != nil {
				return err
			}
		default:
			by := redacted[e.Record.Agent]
			if e.Record.Kind != KindEvent || by == nil || by.Record.Index < e.Record.Index {
				return bad(e.Record.StreamSeq, ErrWithheld, "")
			}
			e.Redacted = by.Redaction
			ev.Redacted++
		}
	}
	return nil
}

// open checks one record's content against its commitments, and reads it.
func (e *Entry) open(b *BundleRecord) error {
	r := &e.Record
	if len(b.Salt) != len(Salt{}) {
		return bad(r.StreamSeq, ErrContent, "a salt of %d bytes", len(b.Salt))
	}
	if err := r.CheckContent(Salt(b.Salt), b.Headers, b.Payload); err != nil {
		return bad(r.StreamSeq, ErrContent, "%w", err)
	}
	subject, h, err := ParseHeaders(b.Headers)
	if err != nil {
		return bad(r.StreamSeq, ErrEvent, "%w", err)
	}
	switch r.Kind {
	case KindGap:
		e.Gap = new(Gap)
		err = own(subject, GapSubject, h, b.Payload, e.Gap)
	case KindRedaction:
		e.Redaction = new(Redaction)
		err = own(subject, RedactionSubject, h, b.Payload, e.Redaction)
	case KindPrune:
		e.Prune = new(Prune)
		err = own(subject, PruneSubject, h, b.Payload, e.Prune)
	case KindHandover:
		e.Handover = new(Handover)
		err = own(subject, HandoverSubject, h, b.Payload, e.Handover)
	default:
		e.Event, err = event(r, subject, h, b.Payload)
	}
	if err != nil {
		return bad(r.StreamSeq, ErrEvent, "%w", err)
	}
	return nil
}

func own(subject, want string, h schemas.Header, body []byte, into any) error {
	if subject != want || len(h) != 0 {
		return fmt.Errorf("it is a record of the ledger's own, and its subject is %.40q", subject)
	}
	return schemas.Unmarshal(body, into)
}

func event(r *Record, subject string, h schemas.Header, body []byte) (*schemas.Event, error) {
	e, err := schemas.DecodeAt(r.StreamSeq, subject, h, body)
	if err != nil {
		return nil, err
	}
	if e.Time.UnixNano() != r.Time {
		return nil, errors.New("its time is not the record's")
	}
	if e.Trace.ID != r.TraceID() {
		return nil, errors.New("its trace is not the record's")
	}
	return e, nil
}

// TraceID is the record's trace as events spell it, "" where there is none.
func (r *Record) TraceID() string {
	if r.Trace == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(r.Trace[:])
}

// span finds the records that were asked for: up to the last that is no
// redaction, and what follows on it without a gap.
func (ev *Evidence) span() {
	follows := func(i int) bool { return ev.Entries[i].Record.Index == ev.Entries[i-1].Record.Index+1 }
	n := len(ev.Entries)
	for n > 0 && ev.Entries[n-1].Record.Kind == KindRedaction {
		n--
	}
	if ev.Complete = n > 0; !ev.Complete {
		n = len(ev.Entries)
	}
	for n > 0 && n < len(ev.Entries) && follows(n) {
		n++
	}
	for i := 1; i < n; i++ {
		ev.Complete = ev.Complete && follows(i)
	}
	if n > 0 {
		ev.First, ev.Last = ev.Entries[0].Record.StreamSeq, ev.Entries[n-1].Record.StreamSeq
	}
}

// A story is what the events say of one another, in log order.
type story struct {
	messages map[uint64]*Entry // by sequence; of any kind
	killed   map[string]kill   // by agent
	void     map[uint64]uint64 // what was accepted behind a kill, and behind which
	run      int               // grows where records are missing in between
}

// A kill counts for what follows it without a gap: behind one, the agent may
// have been enrolled anew.
type kill struct {
	seq uint64
	run int
}

func checkStory(entries []Entry) error {
	s := &story{messages: map[uint64]*Entry{}, killed: map[string]kill{}, void: map[uint64]uint64{}}
	for i := range entries {
		e := &entries[i]
		if i > 0 && e.Record.Index != entries[i-1].Record.Index+1 || e.Gap != nil {
			s.run++
		}
		if e.Event == nil {
			continue
		}
		if err := s.next(e); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) next(entry *Entry) error {
	e := entry.Event
	if e.Ref >= e.Seq {
		return bad(e.Seq, ErrDelivery, "%s is about sequence %d, which comes later", e.Kind, e.Ref)
	}
	if k, dead := s.killed[e.Agent]; dead && k.run == s.run && e.Kind == schemas.MessageAccepted {
		s.void[e.Seq] = k.seq
	}
	if err := s.answer(e); err != nil {
		return err
	}
	s.foldKill(e)
	s.messages[e.Seq] = entry
	return nil
}

// answer holds an answer against what it answers: who answers with the
// request's random id was handed the request by release, and by nobody else.
func (s *story) answer(e *schemas.Event) error {
	entry := s.messages[e.Ref]
	if e.Kind != schemas.ResponseAccepted && e.Kind != schemas.ResponseHeld || entry == nil {
		return nil
	}
	asked := entry.Event
	if asked.Kind != schemas.MessageAccepted && asked.Kind != schemas.MessageHeld {
		return bad(e.Seq, ErrDelivery, "it answers sequence %d, which is no message but %s", e.Ref, asked.Kind)
	}
	if asked.Request != e.Request || asked.To != e.Agent {
		return nil // such an answer is logged, and given to nobody
	}
	if k := s.void[e.Ref]; k != 0 {
		return bad(e.Seq, ErrAfterKill, "%s answered sequence %d, which %s sent after it was killed at %d", e.Agent, e.Ref, asked.Agent, k)
	}
	if entry.Answered == 0 {
		entry.Answered = e.Seq
	}
	return nil
}

// foldKill keeps track of who is killed, as schemas.State does.
func (s *story) foldKill(e *schemas.Event) {
	k, dead := s.killed[e.Agent]
	switch e.Kind {
	case schemas.AgentKilled:
		if !dead {
			s.killed[e.Agent] = kill{e.Seq, s.run}
		}
	case schemas.AgentRemoved:
		delete(s.killed, e.Agent)
	case schemas.AgentEnrolled:
		if dead && e.Ref == k.seq {
			delete(s.killed, e.Agent)
		}
	case schemas.MessageAccepted, schemas.MessageHeld, schemas.MessageDenied, schemas.ResponseAccepted,
		schemas.ResponseHeld, schemas.ResponseDenied, schemas.RiskChanged:
		if e.Lock == schemas.Killed && !dead {
			s.killed[e.Agent] = kill{e.Seq, s.run}
		}
	}
}
