package schemas

import (
	"fmt"
	"time"
)

// Head is the ledger's durable end. Size counts records; Root is the Merkle
// tree head (RFC 6962), hex; Checkpoint is the newest signed one (C2SP
// tlog-checkpoint), which may cover a little less.
type Head struct {
	Size       uint64 `json:"size"`
	StreamSeq  uint64 `json:"stream_seq"`
	Root       string `json:"root"`
	Checkpoint string `json:"checkpoint"`
	// Verified is what the continuous verification found last; nil before its
	// first pass, and where none runs.
	Verified *Verified `json:"verified,omitempty"`
	// Published is missing where no witness policy is set: then what is signed
	// is all there is.
	Published *Published `json:"published,omitempty"`
}

// Verified is what a pass of the continuous verification found.
type Verified struct {
	OK          bool      `json:"ok"`
	Pass        uint64    `json:"pass"` // since the start
	Time        time.Time `json:"time"` // when it ended
	TookMS      int64     `json:"took_ms"`
	Records     uint64    `json:"records"`
	FirstBadSeq uint64    `json:"first_bad_seq,omitempty"`
	Error       string    `json:"error,omitempty"`
}

// Published is the newest checkpoint that enough witnesses have cosigned.
type Published struct {
	Size       uint64         `json:"size"`
	Checkpoint string         `json:"checkpoint"` // with cosignatures; "" where there was none yet
	UnmetFor   float64        `json:"unmet_s"`    // for how long a signed checkpoint has waited for its witnesses
	Witnesses  []WitnessState `json:"witnesses"`
}

// WitnessState is how a witness of the policy last answered.
type WitnessState struct {
	Name    string `json:"name"`
	URL     string `json:"url"`
	Size    uint64 `json:"size"`    // that it cosigned last
	Refused bool   `json:"refused"` // it has seen another history
	Error   string `json:"error,omitempty"`
}

// HeadRequest asks for a head whose checkpoint covers at least Min records;
// the ledger signs one at once if it must.
type HeadRequest struct {
	Min uint64 `json:"min,omitempty"`
}

type VerifyReply struct {
	OK            bool    `json:"ok"`
	Records       uint64  `json:"records"`
	Root          string  `json:"root"`
	FirstBadSeq   uint64  `json:"first_bad_seq"`
	Error         string  `json:"error"`
	RecordsPerSec float64 `json:"records_per_s"`
}

type ProveRequest struct {
	Seq uint64 `json:"seq"`
}

// Proof of inclusion of one record, to be verified offline.
type Proof struct {
	Seq        uint64   `json:"seq"`
	Index      uint64   `json:"index"`  // of the leaf
	Leaf       string   `json:"leaf"`   // base64, 180 bytes
	Hashes     []string `json:"hashes"` // base64, RFC 6962 audit path
	Checkpoint string   `json:"checkpoint"`
}

// ReadRequest asks for records in order, from sequence From on, filtered.
type ReadRequest struct {
	From  uint64 `json:"from,omitempty"`
	To    uint64 `json:"to,omitempty"` // 0: the end
	Agent string `json:"agent,omitempty"`
	Trace string `json:"trace,omitempty"`
	Limit int    `json:"limit,omitempty"` // 1 to 1,000; 100 where 0
	Data  bool   `json:"data,omitempty"`  // with bodies, but for those too long for an answer (over 512 KiB)
	Begin int    `json:"begin,omitempty"` // with so many bytes of those too, 512 Ki at most
}

// Record is one event as the ledger keeps it.
type Record struct {
	Seq     uint64 `json:"seq"`
	Subject string `json:"subject"`
	Header  Header `json:"header"`
	Data    []byte `json:"data,omitempty"`
}

// Event decodes the record. Without its body (ReadRequest.Data), Data is nil.
func (r Record) Event() (*Event, error) {
	body, absent := r.Data, len(r.Data) == 0
	if absent {
		body = []byte(emptyBody)
	}
	e, err := Decode(r.Subject, r.Header, body)
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", r.Seq, err)
	}
	if absent {
		e.Data = nil
	}
	e.Seq = r.Seq
	return e, nil
}

// ReadReply is a page; Next is the From of the following one, 0 at the end.
type ReadReply struct {
	Records []Record `json:"records"`
	Next    uint64   `json:"next,omitempty"`
	Head    uint64   `json:"head"`              // the ledger's last durable sequence
	Pruned  uint64   `json:"pruned,omitempty"`  // events up to here were asked for and are in archives alone
	Unknown bool     `json:"unknown,omitempty"` // nothing was ever recorded of the agent, or it is erased
}

// ShowRequest asks for records with what proves them to somebody outside: those
// of sequences From to To, of an agent, of a trace. The following pages repeat
// Size, Index and Offset as the page before gave them.
type ShowRequest struct {
	From   uint64 `json:"from,omitempty"`
	To     uint64 `json:"to,omitempty"` // 0: the end
	Agent  string `json:"agent,omitempty"`
	Trace  string `json:"trace,omitempty"`
	Size   uint64 `json:"size,omitempty"`   // of the checkpoint; 0: of the newest
	Index  uint64 `json:"index,omitempty"`  // of the record to go on with
	Offset uint64 `json:"offset,omitempty"` // in that record's payload
}

// Shown is a record with all that opens and proves it. Of an erased agent's,
// salt, headers and payload are gone.
type Shown struct {
	Index   uint64 `json:"index"`
	Seq     uint64 `json:"seq"`
	Leaf    []byte `json:"leaf"`
	Path    []byte `json:"path"` // RFC 6962 audit path, 32 bytes each
	Salt    []byte `json:"salt,omitempty"`
	Headers []byte `json:"headers,omitempty"` // as committed to
	Payload []byte `json:"payload,omitempty"` // of a large one the part from Offset on
}

// ShowReply is a page. Redactions are the records that say that those without
// content were erased. More says that a page follows, from Index and Offset on.
type ShowReply struct {
	Checkpoint string  `json:"checkpoint"` // signed, of Size records
	Size       uint64  `json:"size"`
	Records    []Shown `json:"records"`
	Redactions []Shown `json:"redactions,omitempty"`
	More       bool    `json:"more,omitempty"`
	Index      uint64  `json:"index,omitempty"`
	Offset     uint64  `json:"offset,omitempty"`
	// Handovers from key to key of the ledger, oldest first, on a first page.
	Handovers []ShownHandover `json:"handovers,omitempty"`
}

// ShownHandover shows that a key of the ledger named its successor.
type ShownHandover struct {
	Checkpoint string `json:"checkpoint"` // signed by both
	Record     Shown  `json:"record"`     // the last of it, proven against it
	Growth     []byte `json:"growth"`     // RFC 6962 consistency proof to the next checkpoint, 32 bytes each
}

// HandOverRequest has another key sign the ledger's checkpoints, or only makes
// that key, so that who verifies can be told before.
type HandOverRequest struct {
	Prepare bool   `json:"prepare,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Actor   string `json:"actor,omitempty"`
}

// HandOverReply names the keys, as note verifier keys. Prepared says that Key
// signs nothing yet.
type HandOverReply struct {
	Key        string `json:"key"`
	Replaced   string `json:"replaced,omitempty"`
	Size       uint64 `json:"size,omitempty"`       // records up to which the replaced key signs; both have signed so many
	Checkpoint string `json:"checkpoint,omitempty"` // the newest
	Seq        uint64 `json:"seq,omitempty"`        // of the event that says so
	Prepared   bool   `json:"prepared"`
}

// EraseRequest erases the contents of a killed or removed agent for good.
type EraseRequest struct {
	AgentID   string `json:"agent_id"`
	Authority string `json:"authority"` // who may demand it, and by what
	Reason    string `json:"reason"`
}

// EraseReply has a checkpoint over the record that says so. Memory says whether
// the agent's memories were deleted as well.
type EraseReply struct {
	AgentID    string `json:"agent_id"`
	Memory     bool   `json:"memory"`
	Checkpoint string `json:"checkpoint"`
}

// BackupRequest asks for a backup of the ledger in a new folder of the machine
// that it runs on.
type BackupRequest struct {
	Dir string `json:"dir"` // absolute; may not be there yet
}

type BackupReply struct {
	Size       uint64 `json:"size"` // records under the backup's checkpoint
	StreamSeq  uint64 `json:"stream_seq"`
	Checkpoint string `json:"checkpoint"`
}

// PruneRequest asks to prune the contents of events before a time, or with
// LastSeq up to there. Without Archives nothing is done: the reply says what
// may be pruned, which is to be archived first.
type PruneRequest struct {
	Before   time.Time      `json:"before,omitzero"`
	LastSeq  uint64         `json:"last_seq,omitempty"`
	Archives []PruneArchive `json:"archives,omitempty"`
	Reason   string         `json:"reason"`
	Actor    string         `json:"actor"`
}

// PruneArchive is a bundle that holds what is to be pruned.
type PruneArchive struct {
	File     string `json:"file"`
	SHA256   string `json:"sha256"`
	FirstSeq uint64 `json:"first_seq"`
	LastSeq  uint64 `json:"last_seq"`
}

// PruneReply says what was, or may be, pruned: events FirstSeq to LastSeq. Both
// are 0 where nothing may be.
type PruneReply struct {
	FirstSeq   uint64 `json:"first_seq"`
	LastSeq    uint64 `json:"last_seq"`
	Records    uint64 `json:"records"`              // without content, from the first of the ledger on
	Limit      string `json:"limit,omitempty"`      // why no more, where more was asked for
	Checkpoint string `json:"checkpoint,omitempty"` // covers the prune record
}
