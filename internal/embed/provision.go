package embed

import (
	"context"
	"errors"
	"fmt"
	"time"

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
	"ev.*.message.held", "ev.*.message.denied", "ev.*.response.held",
}

// IssuerFilters are what the issuer folds: it also tells what became of an
// agent's actions.
var IssuerFilters = append(append([]string{}, ControlFilters...),
	"ev.*.message.cancelled", "ev.*.message.expired", "ev.*.release.mark")

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
	creds, err := keys.Creds(s.data, keys.RoleInit)
	if err != nil {
		return err
	}
	nc, err := bus.Connect(bus.Options{Role: string(keys.RoleInit), Server: s, Creds: creds})
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("provision: %w", err)
	}
	return Provision(ctx, js)
}

// Provision is the same on any server, with the init role's connection.
func Provision(ctx context.Context, js jetstream.JetStream) error {
	stream, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: schemas.Stream, Description: "Writ's log",
		Subjects:   []string{schemas.EventPrefix + ".>"},
		Storage:    jetstream.FileStorage,
		Replicas:   1,
		Retention:  jetstream.LimitsPolicy,
		MaxAge:     Retention,
		Duplicates: duplicateWindow,
		DenyDelete: true, DenyPurge: true, AllowDirect: true,
	})
	if err != nil {
		return fmt.Errorf("provision the stream %s: %w", schemas.Stream, err)
	}
	for _, role := range []keys.Role{keys.RoleIntake, keys.RoleLedger, keys.RoleMonitor, keys.RoleIssuer} {
		if err := provisionConsumer(ctx, stream, role); err != nil {
			return fmt.Errorf("provision the consumer %s: %w", role, err)
		}
	}
	_, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: keys.MemoryBucket, Description: "agents' memories",
		History: memoryHistory, MaxValueSize: memoryMax, Storage: jetstream.FileStorage, Replicas: 1,
	})
	if err != nil && !errors.Is(err, jetstream.ErrBucketExists) {
		return fmt.Errorf("provision the bucket %s: %w", keys.MemoryBucket, err)
	}
	return nil
}

// provisionConsumer makes the consumer from which a role hears what is new.
// What came before, the role reads from the stream itself, so that the
// consumer's place need not be kept on disk: that would be ten files a second,
// beside the log that has to be synced.
func provisionConsumer(ctx context.Context, stream jetstream.Stream, role keys.Role) error {
	cfg := jetstream.ConsumerConfig{
		Durable:        string(role),
		DeliverPolicy:  jetstream.DeliverNewPolicy,
		AckPolicy:      jetstream.AckNonePolicy,
		MaxWaiting:     64,
		MemoryStorage:  true,
		FilterSubjects: Filters(role),
	}
	there, err := stream.Consumer(ctx, cfg.Durable)
	if err == nil {
		// Place and storage of a consumer can't be changed: one that keeps them
		// on disk, as earlier versions made it, gives way.
		if now := there.CachedInfo().Config; !now.MemoryStorage || now.DeliverPolicy != cfg.DeliverPolicy {
			err = stream.DeleteConsumer(ctx, cfg.Durable)
		}
	} else if errors.Is(err, jetstream.ErrConsumerNotFound) {
		err = nil
	}
	if err == nil {
		_, err = stream.CreateOrUpdateConsumer(ctx, cfg)
	}
	return err
}
