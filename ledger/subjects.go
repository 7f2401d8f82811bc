package ledger

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/schemas"
)

// The subjects file is a table of rows of 80 bytes, one for each agent:
//
//	magic4 | lookup16 | nonce12 | AES-256-GCM of a random 32-byte key
//
// lookup is an HMAC of the agent's id and the associated data of the seal;
// both keys hang on the ledger's secret, and what is made of the row's key hangs
// on it too. Where the secret was replaced (Rewrap), a row of another magic holds
// what was made of it, with magic and lookup as associated data; lookups stay
// those of the first secret, for nobody has the agents' names together. A row of
// zeros was erased. Rows are
// only ever appended, on disk before the first record that needs them, and
// overwritten once, by zeros. A row that does not open is passed over: whoever
// needs it finds it missing.
const (
	subjectsFile = "subjects"
	rowMagic     = "WSK1"
	rewrapMagic  = "WSK2"
	rowSize      = 80
	rowSealed    = 4 + 16 + 12
)

type subjects struct {
	dir    vfs.FS
	folder string
	file   vfs.File // nil where read-only and there is none
	write  bool
	lookup [32]byte
	root   []byte
	kek    cipher.AEAD

	rooms  sync.Pool // of *[]byte, in which contents are sealed
	byName sync.Map  // of *subject by agent, those that were asked for; written under mu

	mu       sync.RWMutex
	rows     uint64
	byLookup map[[16]byte]*subject
	byPseudo map[[16]byte]*subject
	damaged  int
}

// A subject is what hangs on one agent's key.
type subject struct {
	row    uint64
	pseudo [16]byte
	salts  sync.Pool // of hash.Hash, keyed
	seal   cipher.AEAD
}

// isNotExist is also true of package vfs's own errors.
func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// derive makes a 32-byte key. HKDF fails for absurd lengths alone.
func derive(secret, salt []byte, info string) []byte {
	k, err := hkdf.Key(sha256.New, secret, salt, info, 32)
	if err != nil {
		panic(err)
	}
	return k
}

func newAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has the block size of GCM
	}
	return aead
}

// openSubjects reads the table, and makes an empty one where it may write.
func openSubjects(dir vfs.FS, folder string, secret [32]byte, lookup []byte, write bool) (*subjects, error) {
	s := &subjects{dir: dir, folder: folder, write: write, root: secret[:],
		byLookup: map[[16]byte]*subject{}, byPseudo: map[[16]byte]*subject{}}
	if lookup == nil {
		lookup = LookupOf(secret)
	}
	copy(s.lookup[:], lookup)
	s.kek = wrapping(secret)
	path := dir.PathJoin(folder, subjectsFile)
	table, err := readFile(dir, path)
	if err != nil {
		return nil, fmt.Errorf("agents' keys: %w", err)
	}
	s.load(table)
	if !write {
		return s, nil
	}
	if err := dir.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("agents' keys: %w", err)
	}
	if s.file, err = dir.OpenReadWrite(path, vfs.WriteCategoryUnspecified); err != nil {
		return nil, fmt.Errorf("agents' keys: %w", err)
	}
	if err := errors.Join(s.file.Sync(), syncDir(dir, folder)); err != nil {
		return nil, errors.Join(fmt.Errorf("agents' keys: %w", err), s.file.Close())
	}
	return s, nil
}

func (s *subjects) load(table []byte) {
	s.rows = uint64((len(table) + rowSize - 1) / rowSize)
	for i := range s.rows {
		row := table[i*rowSize : min((i+1)*rowSize, uint64(len(table)))]
		if len(row) == rowSize && [rowSize]byte(row) == [rowSize]byte{} {
			continue
		}
		k, err := openRow(row, s.kek, s.root)
		if err != nil || s.byLookup[[16]byte(row[4:20])] != nil {
			s.damaged++
			continue
		}
		s.add([16]byte(row[4:20]), k, i)
	}
}

// LookupOf is what finds agents' keys under a secret.
func LookupOf(secret [32]byte) []byte { return derive(secret[:], nil, "writ/ledger/lookup/v1") }

func wrapping(secret [32]byte) cipher.AEAD {
	return newAEAD(derive(secret[:], nil, "writ/ledger/wrap/v1"))
}

// subjectKey is what all of an agent's hangs on.
func subjectKey(key, root []byte, id [16]byte) []byte {
	return derive(key, root, "writ/ledger/subject/v1\x00"+string(id[:]))
}

// openRow gives an agent's key.
func openRow(row []byte, kek cipher.AEAD, root []byte) ([]byte, error) {
	if len(row) < rowSize {
		return nil, errors.New("a row of the agents' keys is cut short")
	}
	id := [16]byte(row[4:20])
	switch string(row[:4]) {
	case rowMagic:
		key, err := kek.Open(nil, row[20:rowSealed], row[rowSealed:], id[:])
		if err != nil {
			return nil, err
		}
		return subjectKey(key, root, id), nil
	case rewrapMagic:
		return kek.Open(nil, row[20:rowSealed], row[rowSealed:], row[:20])
	}
	return nil, errors.New("it is no row of the agents' keys")
}

func (s *subjects) add(id [16]byte, k []byte, row uint64) *subject {
	saltKey := derive(k, nil, "writ/ledger/salt/v1")
	u := &subject{row: row, seal: newAEAD(derive(k, nil, "writ/ledger/seal/v1"))}
	copy(u.pseudo[:], derive(k, nil, "writ/ledger/pseudonym/v1"))
	u.salts.New = func() any { return hmac.New(sha256.New, saltKey) }
	s.byLookup[id], s.byPseudo[u.pseudo] = u, u
	return u
}

func (s *subjects) id(agent string) (id [16]byte) {
	m := hmac.New(sha256.New, s.lookup[:])
	m.Write([]byte(agent))
	copy(id[:], m.Sum(nil))
	return id
}

// find gives an agent's subject, nil where it has none.
func (s *subjects) find(agent string) *subject {
	if u, ok := s.byName.Load(agent); ok {
		return u.(*subject)
	}
	id := s.id(agent)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.byLookup[id]
	if u != nil {
		s.byName.Store(agent, u)
	}
	return u
}

// of gives the subject that bears a pseudonym, nil where its key is gone.
func (s *subjects) of(pseudo [16]byte) *subject {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byPseudo[pseudo]
}

// need gives an agent's subject, and makes one, on disk, where it has none.
func (s *subjects) need(agent string) (*subject, error) {
	if u := s.find(agent); u != nil {
		return u, nil
	}
	id := s.id(agent)
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.byLookup[id]; u != nil {
		return u, nil
	}
	var key [32]byte
	row := append(make([]byte, 0, rowSize), rowMagic...)
	row = append(row, id[:]...)
	row = row[:rowSealed]
	rand.Read(row[20:]) // never fails (crypto/rand)
	rand.Read(key[:])
	row = s.kek.Seal(row, row[20:rowSealed], key[:], id[:])
	if err := s.put(s.rows, row); err != nil {
		return nil, err
	}
	s.rows++
	return s.add(id, subjectKey(key[:], s.root, id), s.rows-1), nil
}

func (s *subjects) put(row uint64, b []byte) error {
	if s.file == nil {
		return errors.New("agents' keys: opened for reading only")
	}
	if _, err := s.file.WriteAt(b, int64(row*rowSize)); err != nil {
		return fmt.Errorf("agents' keys: %w", err)
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("agents' keys: %w", err)
	}
	return nil
}

// destroy overwrites an agent's key, and gives the pseudonym that hung on it.
func (s *subjects) destroy(agent string) error {
	id := s.id(agent)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.byLookup[id]
	if u == nil {
		return fmt.Errorf("%w: agent %s", ErrNotFound, agent)
	}
	if err := s.put(u.row, make([]byte, rowSize)); err != nil {
		return err
	}
	s.byName.Delete(agent)
	delete(s.byLookup, id)
	delete(s.byPseudo, u.pseudo)
	return nil
}

func (s *subjects) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// mostRoom bounds what is kept of one large content.
const mostRoom = 64 << 10

// takeRoom is a slice of length 0 and of that capacity or more.
func (s *subjects) takeRoom(size int) []byte {
	if b, ok := s.rooms.Get().(*[]byte); ok && cap(*b) >= size {
		return (*b)[:0]
	}
	return make([]byte, 0, size)
}

// giveRoom takes a slice back that nobody uses any more.
func (s *subjects) giveRoom(b []byte) {
	if b = b[:0]; cap(b) > 0 && cap(b) <= mostRoom {
		s.rooms.Put(&b)
	}
}

// salt is the record's, see proof.Record.SaltInput.
func (u *subject) salt(r *proof.Record) (salt proof.Salt) {
	m := u.salts.Get().(hash.Hash)
	defer u.salts.Put(m)
	m.Reset()
	m.Write(r.SaltInput())
	m.Sum(salt[:0])
	return salt
}

// saltOf finds a record's salt; nil where the key that it hangs on is gone.
func (s *subjects) saltOf(r *proof.Record) *proof.Salt {
	u := s.opener(r)
	if u == nil {
		return nil
	}
	salt := u.salt(r)
	return &salt
}

// opener is the subject whose key opens a record: the agent's, or for the
// ledger's own the fleet's. It is nil where that key is gone.
func (s *subjects) opener(r *proof.Record) *subject {
	if r.Kind != proof.KindEvent {
		return s.find(schemas.Fleet)
	}
	return s.of(r.Agent)
}

// nonce is a function of what is sealed, by way of the commitments: the same
// record is sealed to the same bytes, and two records never share a nonce,
// also where EVENTS gives a sequence out twice.
func nonce(r *proof.Record) (n [12]byte) {
	for i := range n {
		n[i] = r.PayloadCommit[i] ^ r.HeadersCommit[i]
	}
	return n
}

// sealContent commits the record to headers and payload, and seals both. The
// slice b holds the headers, then the payload, and is overwritten.
func (u *subject) sealContent(r *proof.Record, b []byte, headers int) []byte {
	salt := u.salt(r)
	r.HeadersLen, r.PayloadLen = uint32(headers), uint32(len(b)-headers)
	r.HeadersCommit = proof.CommitHeaders(salt, b[:headers])
	r.PayloadCommit = proof.CommitPayload(salt, b[headers:])
	n := nonce(r)
	return u.seal.Seal(b[:0], n[:], b, nil)
}

// openContent undoes sealContent, and checks the commitments. room may be
// used for the result.
func (u *subject) openContent(room []byte, r *proof.Record, sealed []byte) (headers, payload []byte, err error) {
	n := nonce(r)
	b, err := u.seal.Open(room[:0], n[:], sealed, nil)
	if err != nil || uint64(len(b)) != uint64(r.HeadersLen)+uint64(r.PayloadLen) {
		return nil, nil, errors.New("its content does not open: it is not what was sealed")
	}
	headers, payload = b[:r.HeadersLen:r.HeadersLen], b[r.HeadersLen:]
	if err := r.CheckContent(u.salt(r), headers, payload); err != nil {
		return nil, nil, err
	}
	return headers, payload, nil
}
