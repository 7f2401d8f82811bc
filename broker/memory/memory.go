// Package memory is the built-in memory of agents: a governed service like any
// other, reached through the straight line (out.<operation>.memory.…), with a
// JetStream key-value bucket behind it. The bucket is in an account of its own:
// what is stored in it is agents' choice, and JetStream publishes it wherever
// a reader says.
//
// The namespace is that of the sender whom release states in Writ-From; a key
// can't leave it, for keys are appended to it and may hold only the tokens of a
// resource. Agents have no rights on the bucket itself. The bucket keeps a
// history of each key; an agent's values together may not exceed its quota.
//
// Actions: memory.get.<key> returns the raw value, or 404; memory.put.<key>
// stores the body; memory.delete.<key> deletes it; memory.list returns a JSON
// array of keys.
package memory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// BucketName is the bucket's.
const BucketName = "MEMORY"

// Bounds of one agent's memory.
const (
	DefaultQuota = 16 << 20 // bytes of values, where none is declared
	MaxKeys      = 10_000
)

// Options of a Service; all are needed.
type Options struct {
	Bucket *nats.Conn // in the account MEMORY, as the user memory
	Agent  *nats.Conn // in the account of the built-in service memory
	Logger *slog.Logger
	Quota  func(agent string) int64 // bytes of values that are declared for it; 0 for none
}

// A Service is one instance; instances share the work by queue group.
type Service struct {
	Options
	kv jetstream.KeyValue

	mu    sync.Mutex
	sizes map[string]map[string]int64 // bytes, by agent and key
}

// Run serves until the context ends. ready is called when it does.
func Run(ctx context.Context, o Options, ready func()) error {
	js, err := jetstream.New(o.Bucket)
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	kv, err := js.KeyValue(ctx, BucketName)
	if err != nil {
		return fmt.Errorf("memory: bucket %s: %w", BucketName, err)
	}
	s := &Service{Options: o, kv: kv, sizes: map[string]map[string]int64{}}
	if err := s.measure(ctx); err != nil {
		return err
	}
	sub, err := o.Agent.QueueSubscribe("in.memory.>", schemas.MemoryID, func(m *nats.Msg) { s.serve(ctx, m) })
	if err != nil {
		return fmt.Errorf("memory: subscribe: %w", err)
	}
	if err := o.Agent.Flush(); err != nil {
		return fmt.Errorf("memory: subscribe: %w", err)
	}
	ready()
	<-ctx.Done()
	if err := sub.Drain(); err != nil && o.Agent.IsConnected() {
		return fmt.Errorf("memory: %w", err)
	}
	return nil
}

// measure finds out how much each agent has stored.
func (s *Service) measure(ctx context.Context) error {
	w, err := s.kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("memory: read the bucket: %w", err)
	}
	for e := range w.Updates() {
		if e == nil {
			break // all that was there has come
		}
		agent, key, _ := strings.Cut(e.Key(), ".")
		s.resize(agent, key, int64(len(e.Value())))
	}
	if err := w.Stop(); err != nil {
		return fmt.Errorf("memory: read the bucket: %w", err)
	}
	return nil
}

func (s *Service) serve(ctx context.Context, m *nats.Msg) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	answer := nats.NewMsg(m.Reply)
	data, err := s.do(ctx, m)
	if err != nil {
		r := bus.AsRefusal(err)
		if r.Code == schemas.CodeUnavailable {
			s.Logger.Error("memory", "subject", m.Subject, "error", err)
		}
		answer.Header, data = nats.Header(r.Header()), r.Body()
	}
	answer.Data = data
	if err := m.RespondMsg(answer); err != nil {
		s.Logger.Error("memory: answer", "error", err)
	}
}

// do carries out one action in the sender's namespace.
func (s *Service) do(ctx context.Context, m *nats.Msg) ([]byte, error) {
	agent := m.Header.Get(schemas.HeaderFrom)
	if err := schemas.CheckID("sender", agent); err != nil {
		return nil, schemas.Refuse(schemas.CodeUnauthorized, "%v", err)
	}
	a, err := schemas.ParseAction(schemas.VerbMemory + ":" + strings.TrimPrefix(m.Subject, "in.memory."))
	if err != nil {
		return nil, schemas.Refuse(schemas.CodeMalformed, "%v", err)
	}
	op, key, _ := strings.Cut(a.Resource, ".")
	switch op {
	case "get":
		return s.get(ctx, agent, key)
	case "put":
		return nil, s.put(ctx, agent, key, m.Data)
	case "delete":
		if err := s.kv.Delete(ctx, agent+"."+key); err != nil {
			return nil, fmt.Errorf("delete: %w", err)
		}
		s.resize(agent, key, -1)
		return nil, nil
	}
	return s.list(agent), nil
}

func (s *Service) get(ctx context.Context, agent, key string) ([]byte, error) {
	e, err := s.kv.Get(ctx, agent+"."+key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, schemas.Refuse(schemas.CodeNotFound, "%s has nothing under %s", agent, key)
	}
	if err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	return e.Value(), nil
}

func (s *Service) put(ctx context.Context, agent, key string, value []byte) error {
	before, err := s.reserve(agent, key, int64(len(value)))
	if err != nil {
		return err
	}
	if _, err := s.kv.Put(ctx, agent+"."+key, value); err != nil {
		s.resize(agent, key, before)
		return fmt.Errorf("put: %w", err)
	}
	return nil
}

// reserve counts a value before it is stored, and gives the size that it
// replaces, -1 for none.
func (s *Service) reserve(agent, key string, size int64) (before int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := s.sizes[agent]
	if keys == nil {
		keys = map[string]int64{}
		s.sizes[agent] = keys
	}
	before, there := keys[key]
	if !there {
		before = -1
		if len(keys) >= MaxKeys {
			return before, schemas.Refuse(schemas.CodeTooLarge, "%s has %d keys, the most allowed; delete some", agent, MaxKeys)
		}
	}
	used := size
	for k, n := range keys {
		if k != key {
			used += n
		}
	}
	quota := s.Quota(agent)
	if quota == 0 {
		quota = DefaultQuota
	}
	if used > quota {
		return before, schemas.Refuse(schemas.CodeTooLarge, "%s would store %d bytes of its %d; delete some", agent, used, quota)
	}
	keys[key] = size
	return before, nil
}

// resize states the size of a key; a negative one forgets it.
func (s *Service) resize(agent, key string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if size < 0 {
		delete(s.sizes[agent], key)
		return
	}
	if s.sizes[agent] == nil {
		s.sizes[agent] = map[string]int64{}
	}
	s.sizes[agent][key] = size
}

// list gives the keys of an agent, sorted, as a JSON array.
func (s *Service) list(agent string) []byte {
	s.mu.Lock()
	keys := make([]string, 0, len(s.sizes[agent]))
	for k := range s.sizes[agent] {
		keys = append(keys, k)
	}
	s.mu.Unlock()
	slices.Sort(keys)
	return schemas.Marshal(keys)
}
