package embed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// Retention is how long the log keeps an event. The ledger keeps it for ever.
const Retention = 7 * 24 * time.Hour

const (
	duplicateWindow = 30 * time.Second // longer than an append is repeated
	memoryHistory   = 5
	memoryMax       = 1 << 20 // bytes of one value
)

// ControlFilters are the events that change what is allowed: all that intake
// folds.
var ControlFilters = []string{
	"ev.*.agent.>", "ev.*.token.>", "ev.*.review.>", "ev.*.policy.>", "ev.*.operation.>", "ev.*.risk.>",
	"ev.*.message.held", "ev.*.message.denied", "ev.*.message.cancelled", "ev.*.message.expired", "ev.*.response.held", "ev.*.response.denied",
}

// IssuerFilters are what the issuer folds: it also tells what became of an
// agent's actions.
var IssuerFilters = append(append([]string{}, ControlFilters...), "ev.*.release.mark")

// Filters are the filter subjects of a role's consumer; none means all.
func Filters(role keys.Role) []string {
	switch role {
	case keys.RoleIntake:
		return ControlFilters
	case keys.RoleIssuer:
		return IssuerFilters
	}
	return nil
}

// Provision makes the stream of events, each role's consumer and the bucket
// of memories, or brings them up to date. It is idempotent.
func (s *Server) Provision(ctx context.Context) error {
	return provision(ctx, true, s.retention, s.data, func(role keys.Role) (*nats.Conn, error) {
		creds, err := keys.Creds(s.data, role)
		if err != nil {
			return nil, err
		}
		return bus.Connect(bus.Options{Role: string(role), Server: s, Creds: creds})
	})
}

// Provision is the same on any server, with the data folder of the keys and the
// connections of the two roles
// that make streams.
func Provision(ctx context.Context, data string, connect func(keys.Role) (*nats.Conn, error)) error {
	return provision(ctx, false, Retention, data, connect)
}

// provision is told whether the server lives and dies with this process: then
// the consumers need not outlive it, and are made anew at each start.
func provision(ctx context.Context, own bool, keep time.Duration, data string, connect func(keys.Role) (*nats.Conn, error)) error {
	var js [2]jetstream.JetStream
	for i, role := range []keys.Role{keys.RoleInit, keys.RoleInitMemory} {
		nc, err := connect(role)
		if err != nil {
			return err
		}
		defer nc.Close()
		if js[i], err = jetstream.New(nc); err != nil {
			return fmt.Errorf("provision: %w", err)
		}
	}
	if err := provisionLog(ctx, js[0], own, keep); err != nil {
		return err
	}
	return provisionMemory(ctx, js[1], js[0], data)
}

func provisionLog(ctx context.Context, js jetstream.JetStream, own bool, keep time.Duration) error {
	if keep == 0 {
		keep = Retention
	}
	stream, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: schemas.Stream, Description: "Writ's log",
		Subjects:   []string{schemas.EventPrefix + ".>"},
		Storage:    jetstream.FileStorage,
		Replicas:   1,
		Retention:  jetstream.LimitsPolicy,
		MaxAge:     keep,
		Duplicates: min(duplicateWindow, keep),
		DenyDelete: true, DenyPurge: true, AllowDirect: true,
	})
	if err != nil {
		return fmt.Errorf("provision the stream %s: %w", schemas.Stream, err)
	}
	for _, role := range []keys.Role{keys.RoleIntake, keys.RoleLedger, keys.RoleMonitor, keys.RoleIssuer} {
		if err := provisionConsumer(ctx, stream, role, own); err != nil {
			return fmt.Errorf("provision the consumer %s: %w", role, err)
		}
	}
	return nil
}

// provisionMemory makes the bucket, and moves into it what an older version
// kept in CONTROL. The memory service may not run meanwhile.
func provisionMemory(ctx context.Context, js, control jetstream.JetStream, data string) error {
	_, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: keys.MemoryBucket, Description: "agents' memories",
		History: memoryHistory, MaxValueSize: memoryMax, Storage: jetstream.FileStorage, Replicas: 1,
	})
	if err != nil && !errors.Is(err, jetstream.ErrBucketExists) {
		return fmt.Errorf("provision the bucket %s: %w", keys.MemoryBucket, err)
	}
	if err := moveMemories(ctx, control, js); err != nil {
		return fmt.Errorf("move agents' memories into their own account: %w", err)
	}
	if err := rewriteMemories(ctx, js, data); err != nil {
		return fmt.Errorf("remove what is left of erased memories: %w", err)
	}
	return nil
}

// provisionConsumer makes the consumer from which a role hears what is new.
// What came before, the role reads from the stream itself. Where the consumer
// lives in memory its place is not written to disk, ten times a second beside
// the log that has to be synced.
func provisionConsumer(ctx context.Context, stream jetstream.Stream, role keys.Role, inMemory bool) error {
	cfg := jetstream.ConsumerConfig{
		Durable:        string(role),
		DeliverPolicy:  jetstream.DeliverNewPolicy,
		AckPolicy:      jetstream.AckNonePolicy,
		MaxWaiting:     64,
		MemoryStorage:  inMemory,
		FilterSubjects: Filters(role),
	}
	there, err := stream.Consumer(ctx, cfg.Durable)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
	case err != nil:
		return err
	case there.CachedInfo().Config.MemoryStorage != inMemory:
		// The storage of a consumer can't be changed, and it holds nothing
		// but its place.
		if err := stream.DeleteConsumer(ctx, cfg.Durable); err != nil {
			return err
		}
	default:
		cfg.DeliverPolicy = there.CachedInfo().Config.DeliverPolicy // nor can where it began
	}
	_, err = stream.CreateOrUpdateConsumer(ctx, cfg)
	return err
}

// memoryStream is the stream behind the bucket.
const memoryStream = "KV_" + keys.MemoryBucket

// operationHeader marks deletions in a bucket.
const operationHeader = "KV-Operation"

// moveMemories copies the bucket's stream with the history of each key, in
// order, and deletes the old one when the new one has all of it. So as long as
// the old one is there, the new one is a copy that was interrupted: it is
// emptied, and made from the beginning.
func moveMemories(ctx context.Context, from, to jetstream.JetStream) error {
	old, err := from.Stream(ctx, memoryStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	bucket, err := to.Stream(ctx, memoryStream)
	if err != nil {
		return err
	}
	if err := bucket.Purge(ctx); err != nil {
		return err
	}
	err = messages(ctx, old, func(m jetstream.Msg) error {
		_, err := to.PublishMsg(ctx, bucketMsg(m.Subject(), m.Headers().Get(operationHeader), m.Data()))
		return err
	})
	if err != nil {
		return err
	}
	return from.DeleteStream(ctx, memoryStream)
}
