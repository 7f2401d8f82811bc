package siem

import (
	"encoding/json"
	"fmt"

	"github.com/writ-sh/writ/schemas"
)

// ocsfVersion is the version of the schema that records are of.
const ocsfVersion = "1.3.0"

type (
	product struct {
		Name    string `json:"name"`
		Vendor  string `json:"vendor_name"`
		Version string `json:"version,omitempty"`
	}
	metadata struct {
		Version     string  `json:"version"`
		Product     product `json:"product"`
		UID         string  `json:"uid,omitempty"`
		Sequence    uint64  `json:"sequence"`
		LogName     string  `json:"log_name"`
		EventCode   string  `json:"event_code"`
		Correlation string  `json:"correlation_uid,omitempty"` // the trace
	}
	user struct {
		Name string `json:"name"`
		UID  string `json:"uid"`
		Type int    `json:"type_id"`
		Kind string `json:"type"`
	}
	actor struct {
		User    user     `json:"user"`
		Session *session `json:"session,omitempty"`
	}
	session struct {
		UID string `json:"uid"`
	}
	service struct {
		Name string `json:"name"`
	}
	api struct {
		Operation string   `json:"operation"`
		Service   *service `json:"service,omitempty"`
		Response  *reply   `json:"response,omitempty"`
	}
	reply struct {
		Code int `json:"code"`
	}
	endpoint struct {
		Name string `json:"name"`
	}
	findingInfo struct {
		UID     string `json:"uid"`
		Title   string `json:"title"`
		Desc    string `json:"desc,omitempty"`
		Created int64  `json:"created_time"`
	}
	artefact struct {
		Actor *actor          `json:"actor,omitempty"`
		API   *api            `json:"api,omitempty"`
		Data  json.RawMessage `json:"data,omitempty"` // the verdict
	}
	entity struct {
		Name string `json:"name"`
		Type string `json:"type"`
		UID  string `json:"uid,omitempty"`
	}
	policy struct { // a capability
		Name string `json:"name,omitempty"` // its operation
		UID  string `json:"uid,omitempty"`  // its jti
	}
	unmapped struct {
		Operation string       `json:"operation_id,omitempty"`
		Action    string       `json:"action,omitempty"`
		To        string       `json:"to,omitempty"`
		Lock      schemas.Lock `json:"lock,omitempty"`
		Verdict   string       `json:"verdict,omitempty"`
		Risk      *int         `json:"risk,omitempty"`
		Ref       uint64       `json:"ref,omitempty"`
		Code      int          `json:"code,omitempty"`
		Tokens    int64        `json:"tokens,omitempty"`
		LatencyUS int64        `json:"latency_us,omitempty"`
		Digest    string       `json:"payload_sha256,omitempty"`
	}
)

// A record is one event as OCSF has it: what all classes have, and behind it
// what belongs to one.
type record struct {
	Category     int       `json:"category_uid"`
	CategoryName string    `json:"category_name"`
	Class        int       `json:"class_uid"`
	ClassName    string    `json:"class_name"`
	Activity     int       `json:"activity_id"`
	ActivityName string    `json:"activity_name"`
	Type         int       `json:"type_uid"`
	Severity     int       `json:"severity_id"`
	SeverityName string    `json:"severity"`
	Time         int64     `json:"time"` // milliseconds
	Status       int       `json:"status_id"`
	StatusName   string    `json:"status"`
	StatusDetail string    `json:"status_detail,omitempty"`
	Message      string    `json:"message,omitempty"`
	Metadata     metadata  `json:"metadata"`
	Actor        *actor    `json:"actor,omitempty"`
	User         *user     `json:"user,omitempty"`
	Session      *session  `json:"session,omitempty"`
	Privileges   *[]string `json:"privileges,omitempty"` // also where there are none
	Policy       *policy   `json:"policy,omitempty"`
	API          *api      `json:"api,omitempty"`
	Src          *endpoint `json:"src_endpoint,omitempty"`
	Dst          *endpoint `json:"dst_endpoint,omitempty"`
	Entity       *entity   `json:"entity,omitempty"`
	Comment      string    `json:"comment,omitempty"`

	FindingInfo *findingInfo `json:"finding_info,omitempty"`
	Evidences   []artefact   `json:"evidences,omitempty"`
	Alert       bool         `json:"is_alert,omitempty"`
	RiskScore   *int         `json:"risk_score,omitempty"`

	Unmapped unmapped `json:"unmapped"`
}

var categoryNames = map[int]string{2: "Findings", 3: "Identity & Access Management", 6: "Application Activity"}

// OCSF writes an event as one line of JSON, without a newline. message says in
// a few words what it is about, version is this program's. Of token.issued the
// body is needed, for what it grants.
func OCSF(e *schemas.Event, message, version string) ([]byte, error) {
	c := classOf(e)
	r := record{
		Category: c.uid / 1000, CategoryName: categoryNames[c.uid/1000], Class: c.uid, ClassName: c.name,
		Activity: c.activity, ActivityName: c.activityName, Type: c.uid*100 + c.activity,
		Severity: severityOf(e), SeverityName: severityNames[severityOf(e)], Time: e.Time.UnixMilli(),
		StatusDetail: e.Reason, Message: message,
		Metadata: metadata{Version: ocsfVersion, Product: product{"Writ", "Writ", version}, UID: e.ID, Sequence: e.Seq,
			LogName: schemas.Stream, EventCode: string(e.Kind), Correlation: e.Trace.ID},
		Unmapped: unmapped{Operation: e.Operation, To: e.To, Lock: e.Lock, Verdict: decisionOf(e), Ref: e.Ref, Code: e.Code,
			Tokens: e.Tokens, LatencyUS: e.Latency.Microseconds()},
	}
	r.Status, r.StatusName = outcome(e)
	if e.Action != (schemas.Action{}) {
		r.Unmapped.Action = e.Action.String()
	}
	if !e.Digest.IsZero() {
		r.Unmapped.Digest = e.Digest.String()
	}
	if len(e.Verdict) > 0 {
		r.Unmapped.Risk = &e.Risk
	}
	switch c.uid {
	case apiActivity:
		r.call(e)
	case detectionFinding:
		r.finding(e)
	case authorizeSession:
		if err := r.session(e); err != nil {
			return nil, err
		}
	case entityManagement:
		r.Entity, r.Comment = &entity{Name: "fleet", Type: "policy"}, e.Reason
		r.by(e)
	default:
		r.User = agent(e.Agent)
		r.by(e)
		if e.Kind == schemas.TokenRevoked || e.Kind == schemas.OperationEnded {
			r.Policy = &policy{Name: e.Operation, UID: e.JTI}
		}
	}
	return json.Marshal(r)
}

func agent(id string) *user { return &user{Name: id, UID: id, Type: other, Kind: "agent"} }

// by names the operator, agent or service that caused it, where the log does.
func (r *record) by(e *schemas.Event) {
	if e.Actor != "" {
		r.Actor = &actor{User: user{Name: e.Actor, UID: e.Actor, Type: other, Kind: "actor"}}
	}
}

func acting(e *schemas.Event) *actor {
	a := &actor{User: *agent(e.Agent)}
	if e.JTI != "" {
		a.Session = &session{e.JTI}
	}
	return a
}

func apiOf(e *schemas.Event) *api {
	a := &api{Operation: string(e.Kind)}
	if e.Action != (schemas.Action{}) {
		a.Operation = e.Action.String()
	}
	if e.To != "" {
		a.Service = &service{e.To}
	}
	if e.Code != 0 {
		a.Response = &reply{e.Code}
	}
	return a
}

func (r *record) call(e *schemas.Event) {
	r.Actor, r.API, r.Src = acting(e), apiOf(e), &endpoint{e.Agent}
	if e.To != "" {
		r.Dst = &endpoint{e.To}
	}
}

// finding is what somebody has to look at. What a review or a change of risk is
// about is the finding's id, so that they are updates of one.
func (r *record) finding(e *schemas.Event) {
	about := e.Seq
	if e.Ref != 0 && r.Activity != 1 {
		about = e.Ref
	}
	r.FindingInfo = &findingInfo{UID: fmt.Sprintf("writ-%d", about), Title: titleOf(e), Desc: e.Reason, Created: e.Time.UnixMilli()}
	evidence := artefact{Actor: acting(e)}
	if e.Action != (schemas.Action{}) {
		evidence.API = apiOf(e)
	}
	if json.Valid(e.Verdict) {
		evidence.Data = e.Verdict
	}
	r.Evidences = []artefact{evidence}
	r.Alert = r.Activity == 1
	if len(e.Verdict) > 0 {
		r.RiskScore = &e.Risk
	}
	switch {
	case e.Kind == schemas.ReviewApproved, e.Kind == schemas.ReviewVouched:
		r.Status, r.StatusName = 3, "Suppressed"
	case e.Kind == schemas.ReviewDenied:
		r.Status, r.StatusName = 4, "Resolved"
	case r.Activity == 2:
		r.Status, r.StatusName = 2, "In Progress"
	default:
		r.Status, r.StatusName = 1, "New"
	}
	r.by(e)
}

func titleOf(e *schemas.Event) string {
	switch {
	case e.Kind == schemas.AgentViolation:
		return "An agent tried what the server itself refuses"
	case e.Kind == schemas.ReviewApproved, e.Kind == schemas.ReviewDenied, e.Kind == schemas.ReviewEndorsed:
		return "A held action was reviewed"
	case e.Kind == schemas.ReviewVouched:
		return "An operator vouched for what had suspended an agent"
	case e.Lock == schemas.Suspended:
		return "An agent was suspended for its risk"
	case e.Lock == schemas.Paused:
		return "An agent was paused for its risk"
	case e.Kind == schemas.ReviewRequested:
		return "An action awaits a review"
	}
	return "An agent's risk changed"
}

// session is a capability: what it grants.
func (r *record) session(e *schemas.Event) error {
	r.User = agent(e.Agent)
	if e.JTI != "" {
		r.Session = &session{e.JTI}
	}
	r.by(e)
	var g schemas.Grant
	if err := schemas.Unmarshal(e.Data, &g); err != nil {
		return fmt.Errorf("event %d: %w", e.Seq, err)
	}
	scope := append([]string{}, g.Scope...)
	r.Privileges = &scope
	return nil
}
