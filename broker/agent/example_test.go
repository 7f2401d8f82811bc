package agent_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/writ-sh/writ/broker/agent"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability/jwks"
)

// An analyst that reads, calls a tool, and reports to a writer, for as long as it
// takes.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := analyse(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func analyse(ctx context.Context) error {
	identity, err := os.ReadFile("analyst-7.creds") // writ enroll analyst-7 --out analyst-7.creds
	if err != nil {
		return err
	}
	a, err := agent.Connect(ctx, agent.Options{URL: "nats://127.0.0.1:4222", Creds: identity,
		Keys: jwks.New(jwks.Options{TrustDomain: "acme.example", Source: jwks.URL("http://127.0.0.1:7422/.well-known/jwks.json", nil)})})
	if err != nil {
		return err
	}
	defer a.Close()
	op, err := a.IssueToken(ctx, agent.Request{OperationID: "report-1", Scope: []string{"read:data.sales_q1_2026", "send:writer-2"},
		Tools: []string{"pandas"}, ForbiddenTools: []string{"bash"}, TTL: 5 * time.Minute, Task: "write the Q1 report"})
	if err != nil {
		return err
	}
	defer func() { _ = op.Close(context.WithoutCancel(ctx)) }() // it ends with its capability at the latest
	sales, err := op.Read(ctx, "data.sales_q1_2026", []byte("{}"))
	if err != nil {
		return err
	}
	table, err := op.Call(ctx, "pandas", sales)
	var refused *schemas.Refusal
	if errors.As(err, &refused) && refused.Code == schemas.CodeHeld {
		return fmt.Errorf("held for review: writ review approve %d", refused.Seq)
	}
	if err != nil {
		return err
	}
	_, err = op.Send(ctx, "writer-2", table)
	return err
}
