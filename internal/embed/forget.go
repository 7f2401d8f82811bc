package embed

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/issuer/keys"
)

// A bucket whose metadata holds rewriteMark is written anew by the next
// Provision: JetStream leaves what was deleted in its files, until they are
// half empty. The value is the sequence up to which the copy has to be put
// back, 0 before there is one.
const (
	rewriteMark = "writ-rewrite"
	copyStream  = memoryStream + "_COPY"
	copyPause   = 20 * time.Millisecond
)

// ForgetMemories deletes an agent's memories with their history, and has the
// next Provision remove what is left of them in the files. The connection is of
// the role init-memory.
func ForgetMemories(ctx context.Context, nc *nats.Conn, agent string) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("forget the memories of %s: %w", agent, err)
	}
	bucket, err := js.Stream(ctx, memoryStream)
	if err == nil {
		// The mark first: what is deleted must not be left over.
		err = mark(ctx, js, bucket, "0")
	}
	if err == nil {
		err = bucket.Purge(ctx, jetstream.WithPurgeSubject("$KV."+keys.MemoryBucket+"."+agent+".>"))
	}
	if err != nil {
		return fmt.Errorf("forget the memories of %s: %w", agent, err)
	}
	return nil
}

// mark sets or, with "", removes the mark.
func mark(ctx context.Context, js jetstream.JetStream, bucket jetstream.Stream, value string) error {
	cfg := bucket.CachedInfo().Config
	meta := map[string]string{}
	for k, v := range cfg.Metadata {
		meta[k] = v
	}
	delete(meta, rewriteMark)
	if value != "" {
		meta[rewriteMark] = value
	}
	cfg.Metadata = meta
	_, err := js.UpdateStream(ctx, cfg)
	return err
}

// rewriteMemories writes a marked bucket anew. The memory service may not run
// meanwhile. What interrupts it is made good by the next.
func rewriteMemories(ctx context.Context, js jetstream.JetStream) error {
	bucket, err := js.Stream(ctx, memoryStream)
	if err != nil {
		return err
	}
	value, marked := bucket.CachedInfo().Config.Metadata[rewriteMark]
	if !marked {
		return nil
	}
	end, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return fmt.Errorf("the mark %q on the bucket is no sequence", value)
	}
	if end == 0 {
		if end, err = copyMemories(ctx, js, bucket); err != nil {
			return err
		}
		if err := mark(ctx, js, bucket, strconv.FormatUint(end, 10)); err != nil {
			return err
		}
	}
	if err := bucket.Purge(ctx); err != nil {
		return err
	}
	if err := putBack(ctx, js, end); err != nil {
		return err
	}
	if err := mark(ctx, js, bucket, ""); err != nil {
		return err
	}
	return js.DeleteStream(ctx, copyStream)
}

// copyMemories has the server copy the bucket, and gives its last sequence.
func copyMemories(ctx context.Context, js jetstream.JetStream, bucket jetstream.Stream) (end uint64, err error) {
	if err := js.DeleteStream(ctx, copyStream); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, err
	}
	info, err := bucket.Info(ctx)
	if err != nil {
		return 0, err
	}
	end = max(info.State.LastSeq, 1)
	c, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: copyStream, Storage: jetstream.FileStorage, Replicas: 1,
		Mirror: &jetstream.StreamSource{Name: memoryStream}})
	if err != nil {
		return 0, err
	}
	for {
		have, err := c.Info(ctx)
		if err != nil {
			return 0, err
		}
		if have.State.Msgs >= info.State.Msgs {
			return end, nil
		}
		select {
		case <-time.After(copyPause):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// putBack publishes the copy's messages up to a sequence into the bucket: what
// comes behind it, the copy has from there.
func putBack(ctx context.Context, js jetstream.JetStream, end uint64) error {
	c, err := js.Stream(ctx, copyStream)
	if err != nil {
		return err
	}
	if c.CachedInfo().State.FirstSeq > end || c.CachedInfo().State.Msgs == 0 {
		return nil
	}
	reader, err := c.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	it, err := reader.Messages()
	if err != nil {
		return err
	}
	defer it.Stop()
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		at, err := m.Metadata()
		if err != nil {
			return err
		}
		if at.Sequence.Stream > end {
			return nil
		}
		again := &nats.Msg{Subject: m.Subject(), Data: m.Data()}
		if op := m.Headers().Get(operationHeader); op != "" {
			again.Header = nats.Header{operationHeader: {op}}
		}
		if _, err := js.PublishMsg(ctx, again); err != nil {
			return err
		}
		if at.NumPending == 0 || at.Sequence.Stream == end {
			return nil
		}
	}
}
