package plane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/ledger"
	"github.com/writ-sh/writ/ledger/proof"
	"github.com/writ-sh/writ/ledger/witness"
	"github.com/writ-sh/writ/schemas"
)

// WitnessPolicy is the file of a data folder that says whose cosignatures
// publish a checkpoint. Where it is missing, nobody's are asked for.
const WitnessPolicy = "witness.policy"

// ErrWitnesses is matched where a witness policy can't be read.
var ErrWitnesses = errors.New("the witness policy")

// lastRound bounds what is shown to witnesses at the end.
const lastRound = time.Second

// readWitnesses gives nil where no policy is set.
func readWitnesses(data string) (*witness.Policy, error) {
	text, err := os.ReadFile(filepath.Join(data, WitnessPolicy))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWitnesses, err)
	}
	p, err := witness.ParsePolicy(text)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrWitnesses, filepath.Join(data, WitnessPolicy), err)
	}
	return p, nil
}

// setWitnesses takes a policy over into the data folder, in one step.
func setWitnesses(data, file string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrWitnesses, err)
	}
	if _, err := witness.ParsePolicy(text); err != nil {
		return fmt.Errorf("%w %s: %w", ErrWitnesses, file, err)
	}
	if err := checkLogs(data, string(text)); err != nil {
		return fmt.Errorf("%w %s: %w", ErrWitnesses, file, err)
	}
	path := filepath.Join(data, WitnessPolicy)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("the witness policy: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("the witness policy: %w", err)
	}
	return nil
}

// checkLogs demands that a policy that names ledgers names this one: it is written
// once, for the control plane and for who verifies.
func checkLogs(data, policy string) error {
	own, err := keys.OpenLedger(data)
	if err != nil {
		return err
	}
	named := false
	for line := range strings.Lines(policy) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "log" {
			continue
		}
		if len(words) != 2 {
			return fmt.Errorf("%w: a line %q is not log VKEY", proof.ErrPolicy, words)
		}
		if _, err := note.NewVerifier(words[1]); err != nil {
			return fmt.Errorf("%w: log %s: %w", proof.ErrPolicy, words[1], err)
		}
		if words[1] == own.Verifier {
			return nil
		}
		named = true
	}
	if named {
		return fmt.Errorf("%w: it names other ledgers than this one, whose key is %s", proof.ErrPolicy, own.Verifier)
	}
	return nil
}

// A publisher shows the ledger's checkpoints to witnesses.
type publisher struct {
	ledger *ledger.Ledger
	client *http.Client
	alarm  ledger.Alarm
}

func newPublisher(led *ledger.Ledger, log *bus.Appender) *publisher {
	return &publisher{
		ledger: led,
		// A witness answers itself, or not at all.
		client: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		alarm: func(ctx context.Context, a schemas.Alarm) error {
			_, err := log.Append(ctx, &schemas.Event{Kind: schemas.LedgerAlarm, Agent: schemas.Fleet, ID: "ledger-" + rand.Text(),
				Source: source(keys.RoleLedger), Time: time.Now().UTC(), Reason: a.What + " at " + strconv.FormatUint(a.Size, 10) + " records",
				ContentType: "application/json", Data: schemas.Marshal(a)})
			return err
		},
	}
}

func (p *publisher) run(ctx context.Context) error {
	return p.ledger.Publish(ctx, p.client, p.alarm)
}

// last shows the checkpoint that was signed at the end.
func (p *publisher) last(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastRound)
	defer cancel()
	return p.ledger.PublishLast(ctx, p.client, p.alarm)
}
