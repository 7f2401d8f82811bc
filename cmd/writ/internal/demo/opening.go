package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

const trustDomain = "acme.example"

// opening starts the control plane, services and agents.
func (s *story) opening(ctx context.Context) error {
	s.Narrator.Chapter("A control plane")
	s.Narrator.Say("Everything runs in this process and in a temporary folder: a NATS server, the five services of Writ, an embedded database. Agents are stock NATS clients.")
	began := time.Now()
	p, err := plane.Start(ctx, plane.Options{Data: s.data, Fleet: filepath.Join(s.dir, "fleet.yaml"), Actor: s.Actor, Logger: s.Logger})
	if err != nil {
		return err
	}
	s.plane = p
	took := time.Since(began)
	if s.operator, err = p.Operator(); err != nil {
		return err
	}
	if !s.step(ctx, "control plane", strings.Join(plane.Services, ", ")+" answer", func(ctx context.Context) (finding, error) {
		up := []string{}
		for _, h := range plane.Health(ctx, s.operator) {
			up = append(up, h.Service)
		}
		slices.Sort(up)
		return found(slices.Equal(up, plane.Services), "%s answer, %d ms after the start", strings.Join(up, ", "), took.Milliseconds()), nil
	}) {
		return errBroken
	}
	s.step(ctx, "fleet", "3 agents and 6 services are declared, all active", s.declared)
	return s.people(ctx)
}

// declared reads the fleet back.
func (s *story) declared(ctx context.Context) (finding, error) {
	rep, err := bus.Call[schemas.StatusReply](ctx, s.operator, schemas.CtlStatus, schemas.StatusRequest{})
	if err != nil {
		return finding{}, err
	}
	agents, services, locked := []string{}, []string{}, 0
	for _, a := range rep.Agents {
		switch {
		case a.AgentID == schemas.MemoryID: // built in
		case a.Kind == schemas.KindAgent:
			agents = append(agents, a.AgentID)
		default:
			services = append(services, a.AgentID)
		}
		if a.State != schemas.Active {
			locked++
		}
	}
	return found(len(agents) == 3 && len(services) == 6 && locked == 0, "%d agents (%s) and %d services (%s); %d not active",
		len(agents), strings.Join(agents, ", "), len(services), strings.Join(services, ", "), locked), nil
}

// people connects services and agents, each with credentials from the issuer.
func (s *story) people(ctx context.Context) error {
	jwks, err := fetch(ctx, s.plane.HTTP()+"/.well-known/jwks.json")
	if err != nil {
		return err
	}
	if s.verifier, err = capability.NewVerifier(trustDomain, jwks); err != nil {
		return err
	}
	db, err := openWarehouse(s.dir, s.periods)
	if err != nil {
		return err
	}
	s.tools = &toolbox{db: db, verifier: s.verifier, served: map[string]int{}, verified: map[string]int{}}
	for _, svc := range []struct {
		id, verb string
		do       handler
	}{
		{"warehouse", schemas.VerbRead, s.tools.warehouse},
		{"drafts", schemas.VerbWrite, s.tools.drafts},
		{"pandas", schemas.VerbCall, s.tools.pandas},
		{"matplotlib", schemas.VerbCall, s.tools.matplotlib},
		{"shell", schemas.VerbCall, s.tools.trap},
		{"web", schemas.VerbCall, s.tools.trap},
	} {
		if err := s.tools.serve(ctx, s, svc.id, svc.verb, svc.do); err != nil {
			return err
		}
	}
	e, err := bus.Call[schemas.EnrollReply](ctx, s.operator, schemas.CtlEnroll, schemas.EnrollRequest{ID: orchestrator, Actor: s.Actor})
	if err != nil {
		return fmt.Errorf("enroll the orchestrator: %w", err)
	}
	if s.chief, err = connect(s.plane.URL(), orchestrator, "", []byte(e.Creds)); err != nil {
		return err
	}
	return s.hire(ctx)
}

// hire lets writer-2 work: with a capability that the orchestrator got for it.
func (s *story) hire(ctx context.Context) error {
	grant, err := s.issue(ctx, schemas.IssueRequest{AgentID: writer, OperationID: writing, Job: "writing",
		Scope: []string{"memory:get", "memory:put"}, Task: "Help the analysts with their texts."})
	if err != nil {
		return err
	}
	c, err := connect(s.plane.URL(), writer, writing, []byte(grant.Creds))
	if err != nil {
		return err
	}
	s.scribe = &scribe{client: c, cancelled: map[string]bool{}}
	if err := s.scribe.listen(); err != nil {
		return err
	}
	_, err = want(c.act(ctx, "memory.put."+secretKey, "text/plain", []byte(secretNote)))
	return err
}

// What writer-2 keeps in its memory.
const (
	secretKey  = "notes.embargo"
	secretNote = "The takeover is announced on April 9; until then not a word to anybody."
)

// issue asks for a capability as the orchestrator, over NATS.
func (s *story) issue(ctx context.Context, req schemas.IssueRequest) (schemas.IssueReply, error) {
	grant, err := wantJSON[schemas.IssueReply](s.chief.token(ctx, "issue", req))
	if err != nil {
		return grant, fmt.Errorf("issue for %s: %w", req.AgentID, err)
	}
	return grant, nil
}

// maxJWKS bounds the issuer's key set, in bytes.
const maxJWKS = 1 << 20

// fetch gets what is public: it needs no credentials.
func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", url, err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", url, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch %s: %s", url, res.Status)
	}
	return io.ReadAll(io.LimitReader(res.Body, maxJWKS))
}
