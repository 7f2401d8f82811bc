package witness

import (
	"fmt"
	"net/url"
	"strings"

	cosign "github.com/transparency-dev/formats/note"
	group "github.com/transparency-dev/formats/witness"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
)

// A Policy says which witnesses count, and how many of them must have cosigned.
// It implements proof.Witnesses.
type Policy struct {
	group   group.Group
	members []Member
}

// A Member is a witness of a policy.
type Member struct {
	Name string // in the policy
	URL  string // where checkpoints are added
	key  note.Verifier
}

// maxMembers bounds what a policy asks for.
const maxMembers = 32

// ParsePolicy reads a witness policy, as Sigsum and Tessera have it: lines of
// words, where "#" begins a comment.
//
//	witness NAME VKEY URL       a witness, its key (cosignature/v1) and address
//	group NAME N|any|all NAME…  so many of these must have cosigned
//	quorum NAME|none            this one, or this group, makes the policy met
//	log VKEY                    for who verifies, see ParseKeyPolicy
//
// What would let one cosignature count twice is refused: a key or an address
// under two names, a name in two places, a group of which none need sign.
// Errors match proof.ErrPolicy.
func ParsePolicy(text []byte) (*Policy, error) {
	fail := func(format string, args ...any) (*Policy, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{proof.ErrPolicy}, args...)...)
	}
	if len(text) > maxBody {
		return fail("%d bytes, and %d are the most", len(text), maxBody)
	}
	g, err := group.ParsePolicy(text)
	if err != nil {
		return fail("%w", err)
	}
	p := &Policy{group: g}
	placed := map[string]bool{}
	keys, addresses, quorums := map[string]bool{}, map[string]bool{}, 0
	place := func(names ...string) error {
		for _, n := range names {
			if placed[n] {
				return fmt.Errorf("%w: %q stands in two places: one cosignature would count twice", proof.ErrPolicy, n)
			}
			placed[n] = true
		}
		return nil
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "witness":
			m, id, err := member(words)
			if err != nil {
				return nil, err
			}
			if keys[id] || addresses[m.URL] {
				return fail("the key or the address of %q is another witness's too: one cosignature would count twice", m.Name)
			}
			keys[id], addresses[m.URL] = true, true
			p.members = append(p.members, m)
		case words[0] == "group":
			if strings.Trim(words[2], "0") == "" {
				return fail("of group %q none need sign", words[1])
			}
			if len(words) == 3 {
				return fail("group %q has no members", words[1])
			}
			if err := place(words[3:]...); err != nil {
				return nil, err
			}
		case words[0] == "quorum":
			if quorums++; quorums > 1 {
				return fail("there are two lines \"quorum\"")
			}
			if words[1] == "none" {
				break
			}
			if err := place(words[1]); err != nil {
				return nil, err
			}
		}
	}
	if len(p.members) > maxMembers {
		return fail("%d witnesses, and %d are the most", len(p.members), maxMembers)
	}
	return p, nil
}

// member reads a line of the form that group.ParsePolicy has accepted. The id
// tells keys apart whatever they are named.
func member(words []string) (m Member, id string, err error) {
	u, err := url.Parse(words[3])
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return m, "", fmt.Errorf("%w: the address of %q is not like https://witness.example", proof.ErrPolicy, words[1])
	}
	w, err := group.New(words[2], u)
	if err != nil {
		return m, "", fmt.Errorf("%w: %w", proof.ErrPolicy, err)
	}
	// The same key may be written with and without its algorithm's number.
	key := words[2]
	if same, err := cosign.VKeyToCosignatureV1(key); err == nil {
		key = same
	}
	// A key is name+hash+base64, and "+" is a character of base64 too.
	_, id, _ = strings.Cut(key, "+")
	_, id, _ = strings.Cut(id, "+")
	return Member{Name: words[1], URL: w.URL, key: w.Key}, id, nil
}

// ParseKeyPolicy reads the policy of who verifies evidence: the ledger's keys
// that count, and which witnesses must have cosigned. It is proof.ParsePolicy's,
// with the lines of ParsePolicy. Errors match proof.ErrPolicy.
func ParseKeyPolicy(text []byte) (*proof.Policy, error) {
	p, err := proof.ParsePolicy(text)
	if err == nil {
		return p, nil // it asks for no witnesses
	}
	w, werr := ParsePolicy(text)
	if werr != nil {
		if !asksForWitnesses(text) {
			return nil, err
		}
		return nil, werr
	}
	return proof.ParseWitnessedPolicy(text, w)
}

func asksForWitnesses(text []byte) bool {
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 0 && (words[0] == "witness" || words[0] == "group" || words[0] == "quorum") {
			return true
		}
	}
	return false
}

// Members are the witnesses to ask.
func (p *Policy) Members() []Member { return p.members }

// Satisfied reports whether enough of the witnesses have cosigned a checkpoint,
// whose own signature it does not look at.
func (p *Policy) Satisfied(checkpoint []byte) bool { return p.group.Satisfied(checkpoint) }

// Cosigned lists the cosignatures that hold.
func (p *Policy) Cosigned(checkpoint []byte) (out []proof.Cosignature) {
	for _, m := range p.members {
		n, err := note.Open(checkpoint, note.VerifierList(m.key))
		if err != nil {
			continue
		}
		at, err := cosign.CoSigV1Timestamp(n.Sigs[0])
		if err != nil {
			continue
		}
		out = append(out, proof.Cosignature{Witness: m.Name, Key: m.key.Name(), Time: at.UTC()})
	}
	return out
}
