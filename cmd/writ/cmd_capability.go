package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
	"github.com/writ-sh/writ/schemas/capability"
)

type issueCmd struct {
	Agent      string        `required:"" placeholder:"ID" help:"Who gets the capability."`
	Operation  string        `required:"" placeholder:"ID" help:"The operation it is for."`
	Scope      []string      `placeholder:"VERB:RESOURCE" help:"What it grants, exactly. May be repeated."`
	Tool       []string      `placeholder:"TOOL" help:"Tool it grants: short for --scope call:TOOL. May be repeated."`
	ForbidTool []string      `placeholder:"TOOL" help:"Tool it denies, whatever else grants it. May be repeated."`
	TTL        time.Duration `name:"ttl" placeholder:"300s" help:"How long it is valid, in whole seconds; the ceiling's where missing."`
	MaxTokens  int64         `placeholder:"N" help:"Language-model tokens that the operation may use."`
	Task       string        `placeholder:"TEXT" help:"What the user asked for, in the user's words."`
	Job        string        `placeholder:"JOB" help:"What recurs, one of the ceiling's jobs."`
	Trace      string        `placeholder:"TRACE" help:"Trace of the user request; a new one where missing."`
	Audience   string        `placeholder:"SERVICE" help:"Who takes the token; the trust domain where missing."`
	DPoPKey    string        `name:"dpop-jkt" placeholder:"THUMBPRINT" help:"Key that must be shown with the token (RFC 7638), with --audience; that of the credentials where missing."`
	Creds      string        `type:"path" placeholder:"FILE" help:"Where to write the NATS credentials (default: ./AGENT.OPERATION.creds)."`
	svidFlags
	Bound bool `name:"certificate-bound" help:"With --svid-dir: the capability counts with that certificate alone (RFC 8705)."`
}

func (c *issueCmd) request(actor string) (r schemas.IssueRequest, err error) {
	for _, id := range [][2]string{{"agent", c.Agent}, {"operation", c.Operation}} {
		if err := schemas.CheckID(id[0], id[1]); err != nil {
			return r, misuse("give --agent and --operation as ids", "%w", err)
		}
	}
	if c.TTL < 0 || c.TTL%time.Second != 0 {
		return r, misuse("give --ttl like 300s or 5m", "--ttl %s is not a whole number of seconds above 0", c.TTL)
	}
	if c.MaxTokens < 0 {
		return r, misuse("give --max-tokens as a number from 0 on", "--max-tokens %d is below 0", c.MaxTokens)
	}
	return schemas.IssueRequest{AgentID: c.Agent, OperationID: c.Operation, Scope: c.Scope, Tools: c.Tool,
		ForbiddenTools: c.ForbidTool, TTLSeconds: int64(c.TTL / time.Second), MaxTokens: c.MaxTokens,
		Task: c.Task, Job: c.Job, TraceID: c.Trace, Audience: c.Audience, DPoPKey: c.DPoPKey, Actor: actor}, nil
}

func (c *issueCmd) Run(ctx context.Context, app *App) error {
	req, err := c.request(app.actor)
	if err != nil {
		return err
	}
	if c.Bound && c.SVIDDir == "" {
		return misuse("add --svid-dir DIR", "--certificate-bound is for a capability that comes with a certificate")
	}
	if c.Creds == "" {
		c.Creds = c.Agent + "." + c.Operation + ".creds"
	}
	if err := canReplace(c.Creds); err != nil {
		return err
	}
	var key []byte
	if req.CertificateRequest, key, err = c.svidFlags.request(); err != nil {
		return err
	}
	req.CertificateBound = c.Bound
	reply, err := call[schemas.IssueReply](ctx, app, schemas.CtlIssue, req)
	if err != nil {
		var r *schemas.Refusal
		if errors.As(err, &r) && r.Code == schemas.CodeForbidden {
			err = advise(err, "stay within the ceiling, or raise it in the fleet file and run writ apply")
		}
		return err
	}
	if err := writeSecret(c.Creds, []byte(reply.Creds)); err != nil {
		return err
	}
	if err := c.svidFlags.write(reply.CertificateReply, key); err != nil {
		return err
	}
	c.needsCertificate(app)
	if len(reply.Scope) == 0 {
		app.note("It grants nothing: what isn't asked for with --scope or --tool isn't granted.")
	}
	if app.JSON {
		return app.emit(struct {
			Token       string    `json:"token"`
			JTI         string    `json:"jti"`
			AgentID     string    `json:"agent_id"`
			OperationID string    `json:"operation_id"`
			Scope       []string  `json:"scope"`
			ExpiresAt   time.Time `json:"expires_at"`
			TraceID     string    `json:"trace_id"`
			Seq         uint64    `json:"seq"`
			CredsFile   string    `json:"creds_file"`
			SVIDDir     string    `json:"svid_dir,omitempty"`
		}{reply.Token, reply.JTI, reply.AgentID, reply.OperationID, list(reply.Scope), reply.ExpiresAt, reply.TraceID, reply.Seq, c.Creds, c.SVIDDir})
	}
	app.facts(c.svidFlags.fact([2]string{"agent", reply.AgentID}, [2]string{"operation", reply.OperationID},
		[2]string{"scope", strings.Join(reply.Scope, " ")},
		[2]string{"expires", app.clock(reply.ExpiresAt) + ", in " + span(reply.ExpiresAt.Sub(app.now()))},
		[2]string{"trace", reply.TraceID}, [2]string{"capability", reply.JTI},
		[2]string{"credentials", c.Creds}, [2]string{"token", reply.Token})...)
	return nil
}

type verifyCmd struct {
	Token       string `arg:"" help:"The token, or - to read it from stdin."`
	JWKS        string `name:"jwks" placeholder:"FILE|URL" help:"The issuer's public keys; the control plane's own where missing."`
	Scope       string `placeholder:"VERB:RESOURCE" help:"Demand that it grants this."`
	Tool        string `placeholder:"TOOL" help:"Demand that it grants this tool."`
	Audience    string `placeholder:"NAME" help:"Demand that it was issued for this audience; the trust domain where missing."`
	Key         string `placeholder:"NKEY" help:"Demand that it belongs to this public user NKey."`
	TrustDomain string `placeholder:"DOMAIN" help:"Demand this trust domain; the control plane's own where --jwks is missing."`
}

// maxJWKS bounds a key set, in bytes.
const maxJWKS = 1 << 20

type verification struct {
	Valid  bool               `json:"valid"`
	Reason string             `json:"reason"`
	Detail string             `json:"detail,omitempty"`
	Claims *capability.Claims `json:"claims"`
}

func (c *verifyCmd) Run(ctx context.Context, app *App) error {
	token, err := c.token(app.stdin)
	if err != nil {
		return err
	}
	verifier, err := c.verifier(ctx, app, token)
	if err != nil {
		return err
	}
	claims, err := verifier.Verify(token, capability.Expect{Time: app.now(), Audience: c.Audience,
		Scope: c.Scope, Tool: c.Tool, PublicKey: c.Key, Delivered: c.Key == ""})
	v := verification{Valid: err == nil, Reason: capability.Reason(err), Claims: claims}
	if err != nil {
		v.Detail = err.Error()
	}
	if app.JSON {
		if err := app.emit(v); err != nil {
			return err
		}
	} else {
		app.verification(v)
	}
	if !v.Valid {
		return errShown
	}
	return nil
}

func (c *verifyCmd) token(stdin io.Reader) (string, error) {
	if c.Token != "-" {
		return c.Token, nil
	}
	b, err := io.ReadAll(io.LimitReader(stdin, capability.MaxToken+2))
	if err != nil {
		return "", advise(fmt.Errorf("read the token from stdin: %w", err), "give the token as an argument")
	}
	token := strings.TrimRight(string(b), "\r\n")
	if token == "" {
		return "", advise(errors.New("stdin holds no token"), "pipe one in, or give it as an argument")
	}
	return token, nil
}

func (c *verifyCmd) verifier(ctx context.Context, app *App, token string) (*capability.Verifier, error) {
	domain := c.TrustDomain
	jwks, own, err := c.keySet(ctx, app)
	if err != nil {
		return nil, err
	}
	if domain == "" {
		if domain = own; domain == "" {
			domain = issuerDomain(token)
		}
	}
	v, err := capability.NewVerifier(domain, jwks)
	if err != nil {
		return nil, advise(err, "give the issuer's JWK Set with --jwks, as it stands under /.well-known/jwks.json")
	}
	return v, nil
}

// issuerDomain is the trust domain that a token names itself. It decides
// nothing: the signature must be of the keys that the user gave, and the
// claims must agree with one another. A token that names none is malformed
// under any.
func issuerDomain(token string) string {
	const none = "invalid"
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return none
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return none
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(raw, &claims) != nil {
		return none
	}
	domain, ok := strings.CutSuffix(strings.TrimPrefix(claims.Issuer, "spiffe://"), "/issuer")
	if !ok || schemas.CheckTrustDomain(domain) != nil {
		return none
	}
	return domain
}

// keySet finds the issuer's public keys: those that the user names, else those
// that the running control plane publishes, else those of the data folder. own
// is the data folder's trust domain, where it is known.
func (c *verifyCmd) keySet(ctx context.Context, app *App) (jwks []byte, own string, err error) {
	if c.JWKS != "" {
		jwks, err = readJWKS(ctx, c.JWKS)
		return jwks, "", err
	}
	if app.Server == "" {
		trust, err := keys.Open(app.Data)
		if err != nil {
			return nil, "", advise(err, needJWKS)
		}
		own = trust.TrustDomain
		if _, err := running(app.Data); err != nil {
			jwks, err := localKeySet(app.Data)
			return jwks, own, err
		}
	}
	set, err := call[json.RawMessage](ctx, app, schemas.CtlJWKS, nil)
	return set, own, err
}

const needJWKS = "give the issuer's public keys with --jwks FILE or --jwks URL"

// localKeySet takes the public keys from the data folder's own, where no
// control plane runs that would publish it.
func localKeySet(data string) ([]byte, error) {
	secrets, err := keys.OpenSecrets(data)
	if err != nil {
		return nil, advise(err, needJWKS)
	}
	return capability.MarshalJWKS(secrets.Capability.Public(time.Now())...)
}

func readJWKS(ctx context.Context, from string) ([]byte, error) {
	const next = "name a file, or the address of /.well-known/jwks.json"
	u, err := url.Parse(from)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		b, err := os.ReadFile(from)
		if err != nil {
			return nil, advise(fmt.Errorf("read the key set: %w", err), next)
		}
		return b, nil
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		return nil, advise(fmt.Errorf("the key set at %s would come unprotected, and anybody on the way could forge it", from), "use https")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, advise(fmt.Errorf("fetch the key set: %w", err), next)
	}
	// A redirect could lead from https to http; the address must be right.
	web := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := web.Do(req)
	if err != nil {
		return nil, advise(fmt.Errorf("fetch the key set: %w", err), next)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, advise(fmt.Errorf("fetch the key set: %s answers %s", from, res.Status), next)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxJWKS))
	if err != nil {
		return nil, advise(fmt.Errorf("fetch the key set: %w", err), next)
	}
	return b, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (t *terminal) verification(v verification) {
	if v.Valid {
		t.say("%s", t.paint(green, "valid"))
	} else {
		t.say("%s %s", t.paint(red, "not valid:"), plain(v.Reason))
		t.note("%s", plain(v.Detail))
	}
	if c := v.Claims; c != nil {
		t.facts([2]string{"agent", c.AgentID}, [2]string{"operation", c.OperationID}, [2]string{"issued by", c.IssuedBy},
			[2]string{"audience", c.Audience}, [2]string{"expires", t.clock(time.Unix(c.Expires, 0))},
			[2]string{"grants", strings.Join(c.Scopes(), " ")}, [2]string{"forbids", strings.Join(c.ForbiddenTools, " ")},
			[2]string{"trace", c.Txn}, [2]string{"capability", c.JTI})
	}
}
