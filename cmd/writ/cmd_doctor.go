package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/issuer/keys"
	"github.com/writ-sh/writ/schemas"
)

type versionCmd struct{}

func (c *versionCmd) Run(app *App) error {
	version, revision := ownVersion(), ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	if app.JSON {
		return app.emit(struct {
			Version  string `json:"version"`
			Revision string `json:"revision"`
			Go       string `json:"go"`
			Platform string `json:"platform"`
		}{version, revision, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH})
	}
	app.say("writ %s %s (%s, %s/%s)", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}

// ownVersion is this program's.
func ownVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

type doctorCmd struct {
	Fleet string `type:"path" placeholder:"FLEET" help:"Also say where the fleet in force differs from this file."`
}

// Results of a check.
const (
	healthy = "ok"
	warned  = "warning"
	failed  = "failed"
	skipped = "skipped"
)

// A check is one thing that was looked at, and what to do about it.
type check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, warning, failed or skipped
	Detail string `json:"detail"`
	Next   string `json:"next,omitempty"`
}

// Bounds of what the doctor takes for healthy.
const (
	diskLow      = 1 << 30          // bytes free: below it, act
	diskFull     = 64 << 20         // bytes free: below it, nothing can be accepted soon
	clockDiffers = 2 * time.Second  // between here and the newest event, if it is ahead
	lagAllowed   = 10 * time.Second // for the services to reach the ledger's end
	lagPoll      = 250 * time.Millisecond
)

func (c *doctorCmd) Run(ctx context.Context, app *App) error {
	var checks []check
	if app.Server == "" {
		checks = append(checks, checkKeys(app.Data), checkCertificates(ctx, app), checkDisk(app.Data))
	}
	checks = append(checks, c.checkPlane(ctx, app)...)
	ok := true
	for _, k := range checks {
		ok = ok && k.State != failed
	}
	if app.JSON {
		if err := app.emit(struct {
			OK     bool    `json:"ok"`
			Checks []check `json:"checks"`
		}{ok, checks}); err != nil {
			return err
		}
	} else {
		app.checks(checks)
	}
	if !ok {
		return errShown
	}
	return nil
}

func (t *terminal) checks(checks []check) {
	styles := map[string]style{healthy: green, warned: yellow, failed: red, skipped: dim}
	for _, k := range checks {
		t.row([]int{8, 9, 0}, []cell{text(k.Name), styled(styles[k.State], k.State), text(k.Detail)})
		if k.Next != "" {
			t.row([]int{8, 9, 0}, []cell{text(""), styled(dim, "next"), text(k.Next)})
		}
	}
}

// checkKeys looks at the folder of keys: whole, and closed to others.
func checkKeys(data string) check {
	k := check{Name: "keys", State: healthy, Detail: "whole, and closed to others"}
	_, err := keys.Open(data)
	if err == nil {
		_, err = keys.OpenSecrets(data)
	}
	if err == nil {
		_, err = keys.OpenLedger(data)
	}
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), adviceKeys(data, err)
		return k
	}
	if keys.IsSealed(data) {
		k.Detail = "whole, sealed, and closed to others"
	}
	if _, err := os.Stat(offlineDir(data)); err == nil {
		k.State, k.Detail = warned, k.Detail+"; the offline keys are still here"
		k.Next = "writ keys export-root --to FILE --remove takes them off this machine; or move " + offlineDir(data)
	}
	return k
}

// adviceKeys is what to do about keys that can't be opened.
func adviceKeys(data string, err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return adviceOwner(data)
	case errors.Is(err, fs.ErrNotExist) && !anyKeys(data):
		return "writ init --data " + data + " makes them; after a loss, restore them from a backup"
	case errors.Is(err, fs.ErrNotExist):
		return "some keys are there, and this one is not: restore keys/ from a backup"
	case errors.Is(err, keys.ErrSealed):
		return fmt.Sprintf(adviceOpener, "", "")
	case errors.Is(err, keys.ErrPermissions):
		return "close them to others, and replace them if somebody had access"
	}
	return "restore the keys from a backup"
}

// anyKeys reports whether a folder of keys holds something: what writ init
// refuses to write over.
func anyKeys(data string) bool {
	entries, err := os.ReadDir(filepath.Join(data, keys.Dir))
	return err == nil && len(entries) > 0
}

func checkDisk(data string) check {
	k := check{Name: "disk", State: healthy}
	free, err := diskFree(data)
	if err != nil {
		k.State, k.Detail, k.Next = warned, fmt.Sprintf("free space of %s is not known: %v", data, err), "look at it with the system's own tools"
		return k
	}
	k.Detail = fmt.Sprintf("%.1f GiB free", float64(free)/(1<<30))
	const next = "make room: what can't be written to the ledger is not delivered"
	switch {
	case free < diskFull:
		k.State, k.Next = failed, next
	case free < diskLow:
		k.State, k.Next = warned, next
	}
	return k
}

// checkPlane looks at the running control plane. Where none runs, that is
// what it says, and nothing else is known.
func (c *doctorCmd) checkPlane(ctx context.Context, app *App) []check {
	cl, err := app.dial()
	if err != nil {
		k := check{Name: "plane", State: failed, Detail: err.Error(), Next: nextFor(err)}
		var a *advised
		if errors.As(err, &a) {
			k.Next = a.next
		}
		return []check{k}
	}
	defer cl.close()
	return []check{checkServices(ctx, cl), checkFleet(ctx, cl), checkMemory(ctx, app, cl), checkClock(ctx, cl, app.now), checkStreams(ctx, cl), checkExpiry(ctx, cl, app.now), c.checkDrift(ctx, app, cl)}
}

func checkServices(ctx context.Context, cl *client) check {
	k := check{Name: "services", State: healthy}
	answered, err := cl.health(ctx)
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), "restart the control plane"
		return k
	}
	var up, down, warn []string
	for _, h := range withMissing(answered) {
		if h.OK {
			up = append(up, h.Service)
		} else {
			down = append(down, h.Service+": "+h.Error)
		}
		if h.Warning != "" {
			warn = append(warn, h.Service+": "+h.Warning)
		}
	}
	k.Detail = "all answer: " + strings.Join(up, " ")
	if len(warn) > 0 {
		k.State, k.Detail, k.Next = warned, strings.Join(warn, "; "), "docs/operations.md says what each means"
	}
	if len(down) > 0 {
		k.State, k.Detail = failed, strings.Join(down, "; ")
		k.Next = "nothing is delivered until they answer: look at the control plane's log and restart it"
	}
	return k
}

// checkFleet tells of a lockdown, in which everything works and nobody acts.
func checkFleet(ctx context.Context, cl *client) check {
	k := check{Name: "fleet", State: healthy, Detail: "not locked down"}
	reply, err := ask[schemas.StatusReply](ctx, cl, schemas.CtlStatus, schemas.StatusRequest{AgentID: schemas.MemoryID})
	switch {
	case err != nil:
		k.State, k.Detail, k.Next = failed, err.Error(), nextFor(err)
	case reply.Lockdown != "":
		k.State, k.Detail, k.Next = warned, "locked down: "+reply.Lockdown+"; nobody acts", "writ lockdown --lift --reason REASON, once what it was for is over"
	}
	return k
}

// checkMemory looks whether agents' memory is served: it is a service of the
// fleet like any other, and can be locked or away while all else answers.
func checkMemory(ctx context.Context, app *App, cl *client) check {
	k := check{Name: "memory", State: healthy, Detail: "agents' memory is served"}
	reply, err := ask[schemas.StatusReply](ctx, cl, schemas.CtlStatus, schemas.StatusRequest{AgentID: schemas.MemoryID})
	if err != nil || len(reply.Agents) != 1 {
		k.State, k.Detail, k.Next = failed, fmt.Sprintf("the built-in service memory is not known: %v", err), "restart the control plane"
		return k
	}
	creds := filepath.Join(app.Data, keys.Dir, plane.MemoryCreds)
	if app.Server != "" {
		creds = filepath.Join("DIR", keys.Dir, plane.MemoryCreds)
	}
	enroll := "writ enroll " + schemas.MemoryID + " --out " + creds
	if app.Server == "" && keys.IsSealed(app.Data) { // nothing in clear goes there
		enroll = "writ enroll " + schemas.MemoryID + " --out FILE, elsewhere; restart the control plane, which makes credentials of its own and seals them; then remove FILE"
	}
	switch m := reply.Agents[0]; {
	case m.State == schemas.Paused:
		k.State, k.Detail, k.Next = warned, "the service memory is paused: "+m.Reason+"; what it answers is held", "writ resume "+schemas.MemoryID+" --reason REASON"
	case m.State == schemas.Suspended:
		k.State, k.Detail, k.Next = warned, "agents have no memory: the service memory is suspended: "+m.Reason, "writ resume "+schemas.MemoryID+" --reason REASON, then "+enroll
	case m.State != schemas.Active:
		k.State, k.Detail, k.Next = warned, fmt.Sprintf("agents have no memory: the service memory is %s: %s", m.State, m.Reason), enroll
	case m.Connections == 0:
		k.State, k.Detail, k.Next = warned, "agents have no memory: the service memory is not connected", "look at the control plane's log; to make its credentials anew: "+enroll
	}
	return k
}

// checkClock holds the clock here against the newest event: it can be old, but
// not from the future.
func checkClock(ctx context.Context, cl *client, now func() time.Time) check {
	k := check{Name: "clock", State: healthy, Detail: "agrees with the newest event"}
	head, err := ask[schemas.Head](ctx, cl, schemas.CtlHead, schemas.HeadRequest{})
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), "look at the ledger first"
		return k
	}
	page, err := cl.read(ctx, schemas.ReadRequest{From: head.StreamSeq, Limit: 1})
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), "look at the ledger first"
		return k
	}
	if len(page.Records) == 0 {
		k.State, k.Detail = skipped, "the ledger is empty"
		return k
	}
	e, err := decodeRecord(page.Records[0])
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), "writ ledger verify says whether the ledger is whole"
		return k
	}
	if ahead := e.Time.Sub(now()); ahead > clockDiffers {
		k.State, k.Detail = failed, fmt.Sprintf("the newest event is %s ahead of the clock here", span(ahead))
		k.Next = "set the clocks of all machines by NTP: capabilities expire by them"
	}
	return k
}

// checkStreams looks whether all services reach the log's durable end.
func checkStreams(ctx context.Context, cl *client) check {
	k := check{Name: "streams", State: healthy}
	head, err := ask[schemas.Head](ctx, cl, schemas.CtlHead, schemas.HeadRequest{})
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), "look at the ledger first"
		return k
	}
	deadline := time.Now().Add(lagAllowed)
	for {
		behind, err := lagging(ctx, cl, head.StreamSeq)
		if err == nil && len(behind) == 0 {
			k.Detail = fmt.Sprintf("all services have worked through the log up to %d", head.StreamSeq)
			return k
		}
		if err != nil || time.Now().After(deadline) {
			k.State, k.Detail = failed, fmt.Sprintf("behind event %d: %s", head.StreamSeq, strings.Join(behind, ", "))
			if err != nil {
				k.Detail = err.Error()
			}
			k.Next = "restart the control plane; if it stays behind, its log says why"
			return k
		}
		select {
		case <-ctx.Done():
		case <-time.After(lagPoll):
		}
	}
}

// readers are the services whose fold takes in every event.
var readers = []string{"ledger", "monitor", "release"}

func lagging(ctx context.Context, cl *client, seq uint64) ([]string, error) {
	answered, err := cl.health(ctx)
	if err != nil {
		return nil, err
	}
	var behind []string
	for _, name := range readers {
		at := uint64(0)
		for _, h := range answered {
			if h.Service == name {
				at = h.Seq
			}
		}
		if at < seq {
			behind = append(behind, fmt.Sprintf("%s at %d", name, at))
		}
	}
	return behind, nil
}

// checkDrift says where the fleet in force and the fleet file differ.
func (c *doctorCmd) checkDrift(ctx context.Context, app *App, cl *client) check {
	k := check{Name: "drift", State: healthy, Detail: "the fleet is as the file says"}
	if c.Fleet == "" {
		k.State, k.Detail, k.Next = skipped, "no fleet file was named", "writ doctor --fleet FLEET compares the fleet in force with it"
		return k
	}
	file, err := readFleet(c.Fleet)
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), "correct the fleet file"
		return k
	}
	reply, err := ask[schemas.ApplyReply](ctx, cl, schemas.CtlApply, file.request(app.actor, true, true))
	if err != nil {
		k.State, k.Detail, k.Next = failed, err.Error(), nextFor(err)
		return k
	}
	if len(reply.Changes) > 0 {
		var ids []string
		for _, change := range reply.Changes {
			ids = append(ids, change.Action+" "+change.ID)
		}
		k.State, k.Detail = warned, "the file would change the fleet: "+strings.Join(ids, ", ")
		k.Next = "writ apply -f " + c.Fleet + " --dry-run shows how"
	}
	return k
}

// offlineDir is where writ init leaves the keys that are to be moved away.
func offlineDir(data string) string { return filepath.Join(data, keys.Dir, "offline") }
