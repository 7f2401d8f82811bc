package embed

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/writ-sh/writ/issuer/keys"
)

// A bucket whose metadata holds rewriteMark is written anew by the next
// Provision: JetStream leaves what was deleted in its files, until they are
// half empty. The mark is first marked, and copied once all that is to be kept
// stands in a file beside it.
const (
	rewriteMark  = "writ-rewrite"
	marked       = "marked"
	copied       = "copied"
	memoriesFile = "memories.copy"
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
		err = mark(ctx, js, bucket, marked)
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

// rewriteMemories writes a marked bucket anew, by way of a file in a folder.
// The memory service may not run meanwhile. What interrupts it is made good by
// the next.
func rewriteMemories(ctx context.Context, js jetstream.JetStream, folder string) error {
	bucket, err := js.Stream(ctx, memoryStream)
	if err != nil {
		return err
	}
	path := filepath.Join(folder, memoriesFile)
	switch bucket.CachedInfo().Config.Metadata[rewriteMark] {
	case marked:
		if err := copyMemories(ctx, bucket, path); err != nil {
			return err
		}
		if err := mark(ctx, js, bucket, copied); err != nil {
			return err
		}
	case copied:
	default:
		return nil
	}
	if err := bucket.Purge(ctx); err != nil {
		return err
	}
	if err := putBack(ctx, js, path); err != nil {
		return err
	}
	if err := mark(ctx, js, bucket, ""); err != nil {
		return err
	}
	return os.Remove(path)
}

// A kept is one message of the bucket in the file.
type kept struct {
	Subject   string `json:"subject"`
	Operation string `json:"operation,omitempty"`
	Data      []byte `json:"data,omitempty"`
}

// copyMemories writes what the bucket holds to a file, durably.
func copyMemories(ctx context.Context, bucket jetstream.Stream, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	out := json.NewEncoder(w)
	err = messages(ctx, bucket, func(m jetstream.Msg) error {
		return out.Encode(kept{m.Subject(), m.Headers().Get(operationHeader), m.Data()})
	})
	return errors.Join(err, w.Flush(), f.Sync(), f.Close())
}

// putBack publishes what the file holds.
func putBack(ctx context.Context, js jetstream.JetStream, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	in := json.NewDecoder(bufio.NewReader(f))
	for {
		var k kept
		err := in.Decode(&k)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := js.PublishMsg(ctx, bucketMsg(k.Subject, k.Operation, k.Data)); err != nil {
			return err
		}
	}
}

// bucketMsg is a message of a bucket as it is published again.
func bucketMsg(subject, operation string, data []byte) *nats.Msg {
	m := &nats.Msg{Subject: subject, Data: data}
	if operation != "" {
		m.Header = nats.Header{operationHeader: {operation}}
	}
	return m
}

// messages reads all that a stream holds now, in order.
func messages(ctx context.Context, s jetstream.Stream, fn func(jetstream.Msg) error) error {
	info, err := s.Info(ctx)
	if err != nil || info.State.Msgs == 0 {
		return err
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	it, err := c.Messages()
	if err != nil {
		return err
	}
	defer it.Stop()
	for range info.State.Msgs {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		if err := fn(m); err != nil {
			return err
		}
	}
	return nil
}
