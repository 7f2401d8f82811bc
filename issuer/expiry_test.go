package issuer

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-sh/writ/issuer/accounts"
	"github.com/writ-sh/writ/issuer/ca"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

// makers are the functions of the project that make a credential or a key, by
// what they call to do so, and the kinds of it. A new one has no place here
// until somebody says when it ends and what then.
var makers = map[string][]string{
	"keys.fill jwt.NewOperatorClaims":                         {kindOperator},
	"keys.fill note.GenerateKey":                              {kindSigning},
	"keys.staticAccount jwt.NewAccountClaims":                 {kindOperator},
	"keys.creds jwt.NewUserClaims":                            {kindRole},
	"keys.makeWeights note.GenerateKey":                       {kindSigning},
	"keys.NextLedger note.GenerateKey":                        {kindSigning},
	"witness.makeKey note.GenerateKey":                        {kindSigning},
	"accounts.killed jwt.NewAccountClaims":                    {kindAccount, kindWarrant},
	"accounts.asked jwt.NewUserClaims":                        nil, // those of the roles
	"accounts.admitted jwt.NewUserClaims":                     nil,
	"issuer.answerCallout jwt.NewAuthorizationResponseClaims": {kindAnswer},
	"ca.sign x509.CreateCertificate":                          nil, // those of its callers
	"ca.Issue sign":                                           {kindSVID},
	"ca.root sign":                                            {kindAuthority},
	"ca.server sign":                                          {kindServer},
	"capability.NewSigner jose.NewSigner":                     {kindToken},
	"dpop.NewProver jose.NewSigner":                           {kindAnswer},
	"hooks.NewSecret rand.Read":                               {kindWebhook},
}

// making are the calls by which one is made. Random bytes are many things;
// what of them is a secret is not to be seen from here, webhooks' aside.
func making(pkg string, in string, call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		if pkg == "ca" && f.Name == "sign" {
			return "sign"
		}
	case *ast.SelectorExpr:
		from, ok := f.X.(*ast.Ident)
		if !ok {
			return ""
		}
		name := from.Name + "." + f.Sel.Name
		if from.Name == "jwt" && strings.HasPrefix(f.Sel.Name, "New") && strings.HasSuffix(f.Sel.Name, "Claims") ||
			slices.Contains([]string{"x509.CreateCertificate", "note.GenerateKey", "jose.NewSigner"}, name) || pkg == "hooks" && in == "NewSecret" && name == "rand.Read" {
			return name
		}
	}
	return ""
}

// A kind of credential that is made and neither watched nor known to last is one
// that ends one day without a warning.
func TestEveryKindOfCredentialIsWatchedOrLasts(t *testing.T) {
	found, roles := map[string]bool{}, map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "/demo/") {
			return err // the demo forges, which counts for nobody
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			in := ""
			if f, ok := decl.(*ast.FuncDecl); ok {
				in = f.Name.Name
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CallExpr:
					if what := making(file.Name.Name, in, n); what != "" {
						found[file.Name.Name+"."+in+" "+what] = true
					}
				case *ast.ValueSpec:
					if id, ok := n.Type.(*ast.Ident); ok && id.Name == "KeyRole" && len(n.Values) == 1 {
						roles[strings.Trim(n.Values[0].(*ast.BasicLit).Value, `"`)] = true
					}
				}
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	kinds := slices.Collect(maps.Keys(roles))
	for maker := range found {
		of, known := makers[maker]
		if !known {
			t.Errorf("%s makes a credential: say in issuer/expiry.go how it is warned of, or why it lasts", maker)
		}
		kinds = append(kinds, of...)
	}
	for maker := range makers {
		if !found[maker] {
			t.Errorf("%s makes nothing any more", maker)
		}
	}
	if len(roles) < 6 {
		t.Errorf("roles of keys: %v", roles)
	}
	for _, kind := range kinds {
		_, watched := warnings[kind]
		if why, lasts := lasting[kind]; watched == lasts || lasts && why == "" {
			t.Errorf("%s: watched %t, lasting %t", kind, watched, lasts)
		}
	}
	for kind := range warnings {
		if !slices.Contains(kinds, kind) {
			t.Errorf("%s is watched, and nothing makes it", kind)
		}
	}
}

// What ends is told of while there is time, and not before; killed ones need no
// renewal.
func TestEveryKindIsWarnedOfInTimeAndSaysHowItIsRenewed(t *testing.T) {
	data := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(keys.Init(data, "acme.example"))
	must(ca.Enable(data, "acme.example", ca.Config{}, noon))
	authority, err := ca.Open(data, "acme.example")
	must(err)
	_, err = authority.ServerTLS(slog.New(slog.DiscardHandler), func() time.Time { return noon })
	must(err)
	i := &Issuer{Options: Options{CA: authority}, state: schemas.NewState(), svids: map[string]time.Time{"a": noon.Add(ca.TTL)}}
	i.pushes = newPushes(i)
	i.pushes.sent["a"] = &sent{taken: noon.Unix(), account: accounts.Account{ID: "a", Lock: schemas.Active}}
	put := func(e schemas.Event) {
		t.Helper()
		e.Seq, e.Time = i.state.Seq+1, noon
		must(i.state.Apply(&e))
	}
	for id, kind := range map[string]string{"a": schemas.KindAgent, "s": schemas.KindService, "o": schemas.KindOperator, "j": schemas.KindAgent, "dead": schemas.KindAgent} {
		p := schemas.Principal{ID: id, Kind: kind}
		if kind == schemas.KindOperator {
			p.Role = schemas.RoleViewer
		}
		put(schemas.Event{Kind: schemas.AgentDeclared, Agent: id, Data: schemas.Marshal(p)})
		if id == "j" {
			put(schemas.Event{Kind: schemas.AgentInvited, Agent: id, JTI: "1", Expires: noon.Add(2 * time.Hour)})
			continue
		}
		e, err := decideEnroll(i.state, schemas.EnrollRequest{ID: id, Actor: "ada"}, "", noon)
		must(err)
		put(*e)
	}
	put(schemas.Event{Kind: schemas.AgentKilled, Agent: "dead", Reason: "test"})
	ends := map[string]time.Time{
		string(keys.IdentityKey): noon.Add(identityTTL), string(keys.ServiceKey): noon.Add(serviceTTL), string(keys.OperatorKey): noon.Add(operatorTTL),
		string(keys.JoinKey): noon.Add(2 * time.Hour), kindSVID: noon.Add(ca.TTL), kindAccount: noon.Add(accounts.TTL),
		kindAuthority: authority.Expires(), kindServer: authority.ServerExpires(),
	}
	named := func(kind string, now time.Time) (found []schemas.Expiry) {
		for _, x := range i.expiring(now) {
			if x.Kind == kind {
				found = append(found, x)
			}
		}
		return found
	}
	for kind, w := range warnings {
		end := ends[kind]
		if end.IsZero() {
			t.Errorf("%s: the test makes none", kind)
			continue
		}
		if early := named(kind, end.Add(-w.lead-time.Second)); len(early) != 0 {
			t.Errorf("%s: warned of early: %+v", kind, early)
		}
		in := named(kind, end.Add(-w.lead+time.Second))
		if len(in) != 1 || !in[0].Expires.Equal(end.Truncate(time.Second)) || in[0].Renew == "" || strings.Contains(in[0].Renew, "%") {
			t.Errorf("%s: %+v, it ends at %s", kind, in, end)
		}
		if behind := named(kind, end.Add(time.Second)); (len(behind) == 1) != w.own {
			t.Errorf("%s: behind its end: %+v", kind, behind)
		}
		if health := ownExpiring(in); (health != "") != w.own {
			t.Errorf("%s: the health says %q", kind, health)
		}
	}
	var log strings.Builder
	i.Logger = slog.New(slog.NewTextHandler(&log, nil))
	at := noon.Add(identityTTL - time.Hour)
	said := i.warnExpiring(at, nil)
	once := log.String()
	i.warnExpiring(at.Add(time.Minute), said)
	if !strings.Contains(once, "kind=identity id=a") || !strings.Contains(once, "writ enroll a --out FILE") || strings.Contains(once, "id=dead") || log.String() != once {
		t.Errorf("logged:\n%s", log.String())
	}
	put(schemas.Event{Kind: schemas.AgentRenewed, Agent: "a", Expires: at.Add(identityTTL)})
	if left := named(string(keys.IdentityKey), at); len(left) != 0 {
		t.Errorf("renewed, and still warned of: %+v", left)
	}
}
