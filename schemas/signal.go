package schemas

import (
	"errors"
	"fmt"
	"slices"
)

// A SignalSource is somebody outside who may say that agents are more, or less,
// at risk: a classifier, an endpoint detection, an identity provider. What it may
// say is declared: about whom, and how much each of its events weighs.
type SignalSource struct {
	ID       string         `json:"id"`
	Issuer   string         `json:"issuer,omitempty"`   // iss of its security event tokens; it sends none where empty
	Audience string         `json:"audience,omitempty"` // aud that they must name: us
	JWKS     string         `json:"jwks,omitempty"`     // public keys that sign them: a JWK Set
	Agents   []string       `json:"agents"`             // whom it may speak about; AnyAgent for all
	Weight   map[string]int `json:"weight"`             // points of risk by event, LeastPoints to MostPoints
}

// AnyAgent stands in a source's list of agents for all of them.
const AnyAgent = "*"

// Bounds of what outside signals can do, in points of risk, and of how many
// sources and events of one can be declared.
const (
	LeastPoints      = -30
	MostPoints       = 100
	MaxSources       = 16
	maxSignalEvents  = 16
	maxSignalAgents  = 10_000
	maxJWKS          = 16 << 10
	maxSignalAddress = 200
)

// Check reports what a source can't be declared with. Whether the keys are any
// is for those to say who verify with them.
func (s *SignalSource) Check() error {
	if err := CheckID("signal source", s.ID); err != nil {
		return err
	}
	tokens := s.Issuer != "" || s.Audience != "" || s.JWKS != ""
	switch {
	case tokens && (s.Issuer == "" || s.Audience == "" || s.JWKS == ""):
		return errors.New("issuer, audience and jwks belong together: give all three, or none where the source sends no tokens")
	case len(s.Issuer) > maxSignalAddress || len(s.Audience) > maxSignalAddress || len(s.JWKS) > maxJWKS:
		return fmt.Errorf("issuer and audience may have %d bytes, jwks %d", maxSignalAddress, maxJWKS)
	case len(s.Agents) == 0 || len(s.Agents) > maxSignalAgents:
		return fmt.Errorf("it names %d agents; 1 to %d are possible, or %q alone for all", len(s.Agents), maxSignalAgents, AnyAgent)
	case len(s.Weight) == 0 || len(s.Weight) > maxSignalEvents:
		return fmt.Errorf("it weighs %d events; 1 to %d are possible", len(s.Weight), maxSignalEvents)
	case slices.Contains(s.Agents, AnyAgent) && len(s.Agents) > 1:
		return fmt.Errorf("%q stands for all agents: name no others beside it", AnyAgent)
	}
	for _, id := range s.Agents {
		if id == AnyAgent {
			continue
		}
		if err := CheckID("agent", id); err != nil {
			return err
		}
	}
	for event, points := range s.Weight {
		if err := CheckID("event", event); err != nil {
			return err
		}
		if points < LeastPoints || points > MostPoints || points == 0 {
			return fmt.Errorf("event %s weighs %d; %d to %d are possible, and not 0", event, points, LeastPoints, MostPoints)
		}
	}
	return nil
}

// About reports whether the source may speak about an agent.
func (s *SignalSource) About(agent string) bool {
	return slices.Contains(s.Agents, agent) || slices.Contains(s.Agents, AnyAgent)
}

// A Signal is what a source said about an agent: the body of risk.signal. It
// takes the place of what the source said of the same event before.
type Signal struct {
	Source string `json:"source"`
	Event  string `json:"event"`
	Points int    `json:"points"` // of risk; 0 takes back what was said before
	// Token and Issued are those of a security event token: its jti, and when
	// it says that it was made (seconds since 1970). A token counts once.
	Token  string `json:"jti,omitempty"`
	Issued int64  `json:"iat,omitempty"`
}

// SignalRequest says that an agent is more, or less, at risk.
type SignalRequest struct {
	AgentID string `json:"agent_id"`
	Source  string `json:"source"`
	Event   string `json:"event"`            // one that the source is declared with
	Points  *int   `json:"points,omitempty"` // the declared weight where absent; between it and 0
	Reason  string `json:"reason"`
	Actor   string `json:"actor"`
	// Operator is set by the issuer alone, on behalf of a named operator.
	Operator string `json:"operator,omitempty"`
}

// SignalReply names the event that the signal became, and the agent's risk
// behind it.
type SignalReply struct {
	Seq    uint64 `json:"seq"`
	Points int    `json:"points"`
	Risk   int    `json:"risk"`
}

// TokenRequest hands on a security event token (RFC 8417), as it was received.
type TokenRequest struct {
	Token string `json:"token"`
}

// TokenReply says what became of it: nothing where Err, an error code of RFC
// 8935, is set.
type TokenReply struct {
	Seq         uint64 `json:"seq,omitempty"` // 0: it was taken before, and counts once
	Err         string `json:"err,omitempty"`
	Description string `json:"description,omitempty"`
}
