// Package witness keeps a log from showing two histories.
//
// # What a witness is
//
// A witness is a machine of somebody else's. It remembers, for each log that it
// watches, the newest checkpoint that it has cosigned, and cosigns another only
// where a consistency proof shows that the one is a prefix of the other. Whoever
// holds a log's database and its signing key can write a new history, and
// nothing in it contradicts itself; but no witness that saw the old one cosigns
// it, and who demands cosignatures ([Policy]) does not believe it.
//
// # The protocol
//
// C2SP tlog-witness: POST /add-checkpoint with a [Request]. The witness answers
//
//	200  with its cosignature (C2SP tlog-cosignature, cosignature/v1), the line
//	     of a signed note
//	400  where the request is malformed, or its old size above the checkpoint's
//	403  where no trusted key of the log has signed the checkpoint
//	404  where it does not watch such a log
//	409  with the size that it cosigned last (text/x.tlog.size), where the
//	     request's old size is another; without one, where the checkpoint is of
//	     that very size and has another root
//	422  where the proof does not hold
//
// Of a log whose key was replaced it is given the keys in their order: once it
// has cosigned what the successor signed, the former key counts no more, so that
// a thief of that can't have it cosign what the log never was.
//
// It cosigns only what it has on disk: a checkpoint is written, by rename, and
// synced before the answer is made, so that a witness that crashed remembers
// everything that it ever cosigned. One process holds a folder.
//
// # What it does not do
//
// It does not see the records, and can't tell whether they are true. It doesn't
// find a fork that was shown to nobody who asks for its cosignature. Checkpoints
// with extension lines are refused: nobody would have read what they say.
package witness

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/gofrs/flock"
	cosign "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/ledger/proof"
)

const (
	keyFile  = "witness.key"
	pubFile  = "witness.pub"
	lockFile = "lock"
)

// Options of a witness.
type Options struct {
	Dir    string          // its key and what it has cosigned
	Name   string          // of its key, where it has none yet: a host name, best
	Logs   []note.Verifier // keys of the logs; several of one name are one log's, each the successor of the one before
	Logger *slog.Logger
}

// A Witness watches logs. It is an http.Handler.
type Witness struct {
	http.Handler
	dir    string
	logger *slog.Logger
	lock   *flock.Flock
	signer note.Signer
	vkey   string
	logs   map[string]*watched // by origin
}

// A watched log.
type watched struct {
	path string
	keys []note.Verifier

	mu   sync.Mutex       // held from the comparison until the answer is on disk
	last proof.Checkpoint // cosigned last; of size 0 where nothing was
	from int              // which key signed that: those before it count no more
}

// Open opens a witness's folder, and makes its key where there is none.
func Open(o Options) (_ *Witness, err error) {
	if len(o.Logs) == 0 {
		return nil, errors.New("witness: no log is named")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	w := &Witness{dir: o.Dir, logger: o.Logger, lock: flock.New(filepath.Join(o.Dir, lockFile)), logs: map[string]*watched{}}
	if held, err := w.lock.TryLock(); err != nil || !held {
		return nil, errors.Join(fmt.Errorf("witness: %s is in use by another witness: two would cosign two histories", o.Dir), err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if err := w.openKey(o.Name); err != nil {
		return nil, err
	}
	for _, v := range o.Logs {
		l := w.logs[v.Name()]
		if l == nil {
			sum := sha256.Sum256([]byte(v.Name()))
			l = &watched{path: filepath.Join(o.Dir, hex.EncodeToString(sum[:])+".log")}
			w.logs[v.Name()] = l
		}
		l.keys = append(l.keys, v)
	}
	for origin, l := range w.logs {
		if err := l.load(origin); err != nil {
			return nil, err
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", w.add)
	w.Handler = mux
	return w, nil
}

// Close lets the folder go.
func (w *Witness) Close() error { return w.lock.Close() }

// Key is the witness's public key, as a policy names it.
func (w *Witness) Key() string { return w.vkey }

// Name is that of its key.
func (w *Witness) Name() string { return w.signer.Name() }

// openKey reads the witness's key, and makes one where there is none.
func (w *Witness) openKey(name string) error {
	path := filepath.Join(w.dir, keyFile)
	skey, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return w.makeKey(name)
	}
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
		return errors.Join(fmt.Errorf("witness: others can read %s: make it readable by its owner alone (chmod 600)", path), err)
	}
	if w.signer, err = cosign.NewSignerForCosignatureV1(strings.TrimSpace(string(skey))); err != nil {
		return fmt.Errorf("witness: %s is damaged (%w): restore it from a backup", path, err)
	}
	if name != "" && name != w.signer.Name() {
		return fmt.Errorf("witness: the key in %s is named %q, and not %q: leave the name out", w.dir, w.signer.Name(), name)
	}
	vkey, err := os.ReadFile(filepath.Join(w.dir, pubFile))
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	w.vkey = strings.TrimSpace(string(vkey))
	if v, err := cosign.NewVerifierForCosignatureV1(w.vkey); err != nil || v.Name() != w.signer.Name() || v.KeyHash() != w.signer.KeyHash() {
		return fmt.Errorf("witness: %s is not the public half of %s", pubFile, keyFile)
	}
	return nil
}

func (w *Witness) makeKey(name string) error {
	if name == "" {
		return errors.New("witness: it has no key yet, and a new one needs a name, like witness.example")
	}
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err == nil {
		w.signer, err = cosign.NewSignerForCosignatureV1(skey)
	}
	if err == nil {
		w.vkey, err = cosign.VKeyToCosignatureV1(vkey)
	}
	if err != nil {
		return fmt.Errorf("witness: make a key named %q: %w", name, err)
	}
	// The secret half last: where it is, the other is too.
	if err := replace(filepath.Join(w.dir, pubFile), []byte(w.vkey+"\n")); err != nil {
		return err
	}
	return replace(filepath.Join(w.dir, keyFile), []byte(skey+"\n"))
}

// load reads what was cosigned last. What no key of the log has signed is not
// passed over: the witness would forget.
func (l *watched) load(origin string) error {
	msg, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		l.last = proof.Checkpoint{Origin: origin, Root: proof.EmptyRoot}
		return nil
	}
	if err == nil {
		l.last, l.from, err = l.open(msg, 0)
	}
	if err != nil {
		return fmt.Errorf("witness: what was cosigned of %q can't be read (%w): restore %s, and name the key that signed it too", origin, err, l.path)
	}
	return nil
}

// open verifies a checkpoint under the log's keys from one on, and says which
// signed it: the newest of them, for a log's handover bears both signatures.
func (l *watched) open(msg []byte, from int) (c proof.Checkpoint, key int, err error) {
	for key = len(l.keys) - 1; key >= from; key-- {
		if c, err = proof.OpenCheckpoint(msg, l.keys[key]); err == nil {
			break
		}
	}
	return c, key, err
}

// A refusal is an answer other than a cosignature.
type refusal struct {
	status int
	size   uint64 // where told
	told   bool
	why    string
}

func refuse(status int, format string, args ...any) *refusal {
	return &refusal{status: status, why: fmt.Sprintf(format, args...)}
}

func (w *Witness) add(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxBody))
	if err != nil {
		http.Error(rw, "the request can't be read, or is too long", http.StatusBadRequest)
		return
	}
	cosignature, no := w.Add(body)
	if no == nil {
		_, _ = rw.Write(cosignature) // the client went away
		return
	}
	w.logger.Warn("witness: refused", "status", no.status, "why", no.why)
	if no.told {
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(no.status)
		_, _ = fmt.Fprintf(rw, "%d\n", no.size)
		return
	}
	http.Error(rw, no.why, no.status)
}

// Add judges a request, and gives the cosignature's line.
func (w *Witness) Add(body []byte) ([]byte, *refusal) {
	req, err := ParseRequest(body)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	origin, _, _ := bytes.Cut(req.Checkpoint, []byte("\n"))
	l := w.logs[string(origin)]
	if l == nil {
		return nil, refuse(http.StatusNotFound, "this witness does not watch a log named %.100q", origin)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c, key, err := l.open(req.Checkpoint, l.from)
	if err != nil {
		return nil, refuse(unopened(err), "%v", err)
	}
	if req.Old > c.Size {
		return nil, refuse(http.StatusBadRequest, "the old size %d is above the checkpoint's, %d", req.Old, c.Size)
	}
	if req.Old != l.last.Size {
		no := refuse(http.StatusConflict, "the old size is %d, and what was cosigned last has %d", req.Old, l.last.Size)
		no.size, no.told = l.last.Size, true
		return nil, no
	}
	if no := l.follows(c, req.Proof); no != nil {
		return nil, no
	}
	cosignature, err := w.cosign(c, req.Checkpoint)
	if err == nil && (c.Size > l.last.Size || key > l.from) {
		err = replace(l.path, req.Checkpoint)
	}
	if err != nil {
		w.logger.Error("witness: nothing was cosigned", "error", err)
		return nil, refuse(http.StatusInternalServerError, "the witness can't keep what it would cosign")
	}
	l.last, l.from = c, key
	return cosignature, nil
}

// unopened tells a checkpoint that nobody trusted has signed from what is none.
func unopened(err error) int {
	var unsigned *note.UnverifiedNoteError
	var forged *note.InvalidSignatureError
	if errors.As(err, &unsigned) || errors.As(err, &forged) {
		return http.StatusForbidden
	}
	return http.StatusBadRequest
}

// follows refuses what is not the same history, grown.
func (l *watched) follows(c proof.Checkpoint, path []proof.Hash) *refusal {
	if c.Size == l.last.Size && c.Root != l.last.Root {
		return refuse(http.StatusConflict, "another tree of the same size, %d, was cosigned: this log is forked", c.Size)
	}
	if err := proof.CheckConsistency(l.last, c, path); err != nil {
		return refuse(http.StatusUnprocessableEntity, "%v: no proof that the log is what was cosigned, grown", err)
	}
	return nil
}

// cosign gives the line of the witness's cosignature.
func (w *Witness) cosign(c proof.Checkpoint, msg []byte) ([]byte, error) {
	// Only the text is signed: none of the request's signatures is repeated.
	text, _, _ := bytes.Cut(msg, []byte("\n\n"))
	signed, err := note.Sign(&note.Note{Text: string(text) + "\n"}, w.signer)
	if err != nil {
		return nil, fmt.Errorf("cosign the checkpoint of size %d: %w", c.Size, err)
	}
	_, line, _ := bytes.Cut(signed, []byte("\n\n"))
	return slices.Clone(line), nil
}

// replace writes a file by rename, and returns when it is on disk.
func replace(path string, content []byte) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	return nil
}
