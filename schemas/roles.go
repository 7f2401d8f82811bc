package schemas

import "slices"

// OpPrefix begins what named operators ask: each has an account of its own, in
// which writ.ctl.> is writ.op.<name>.> of CONTROL. So the server says who asks.
const OpPrefix = "writ.op"

// RootActor begins the actor of a command that was given with the credential
// of the data folder, which is nobody's in particular; what follows is what
// the command said of itself. It is no id, so no operator can be taken for it.
const RootActor = "root/"

// A Role bounds the commands that an operator may give.
type Role string

// The roles, each of which may do what those before it may.
const (
	RoleViewer   Role = "viewer"   // look
	RoleReviewer Role = "reviewer" // decide held actions
	RoleOperator Role = "operator" // issue, enrol and lock agents
	RoleAdmin    Role = "admin"    // declare the fleet, and the operators
)

// Roles are all of them, weakest first.
func Roles() []Role { return []Role{RoleViewer, RoleReviewer, RoleOperator, RoleAdmin} }

// Valid reports whether there is such a role.
func (r Role) Valid() bool { return slices.Contains(Roles(), r) }

// weakest is the role that a command demands. What is not in it, erasure,
// backups, pruning and the ledger's key, is for who has the data folder alone.
var weakest = map[string]Role{
	CtlApply: RoleAdmin, CtlRotate: RoleAdmin, CtlEnroll: RoleOperator, CtlIssue: RoleOperator, CtlLock: RoleOperator, CtlLockdown: RoleOperator, CtlWarrant: RoleOperator, CtlReview: RoleReviewer,
	CtlRevoke: RoleOperator, CtlTokens: RoleViewer, CtlBudgets: RoleViewer, CtlLocks: RoleViewer,
	CtlReviews: RoleViewer, CtlStatus: RoleViewer, CtlJWKS: RoleViewer,
	CtlHead: RoleViewer, CtlVerify: RoleViewer, CtlProve: RoleViewer, CtlRead: RoleViewer, CtlShow: RoleViewer,
	CtlSignal: RoleOperator, CtlToken: RoleOperator,
	CtlRisk: RoleViewer, CtlShadow: RoleViewer, CtlRisks: RoleViewer, CtlHealth: RoleViewer,
}

// May reports whether a role may ask on a control subject.
func (r Role) May(subject string) bool {
	needs, known := weakest[subject]
	return known && r.Valid() && slices.Index(Roles(), r) >= slices.Index(Roles(), needs)
}

// Commands lists the control subjects on which a role may ask, sorted.
func (r Role) Commands() []string {
	var out []string
	for subject := range weakest {
		if r.May(subject) {
			out = append(out, subject)
		}
	}
	slices.Sort(out)
	return out
}
