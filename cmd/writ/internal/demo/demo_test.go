package demo

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/writ-sh/writ/issuer/fleet"
	"github.com/writ-sh/writ/schemas"
)

func show(t *testing.T, r *Report) {
	t.Helper()
	for i, s := range r.Steps {
		t.Logf("%2d %s: ok %t\n\texpected %s\n\tobserved %s", i+1, s.Name, s.OK, s.Expected, s.Observed)
	}
}

func TestTheStoryComesOutAsExpected(t *testing.T) {
	report, err := Run(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	show(t, report)
	for _, s := range report.Steps {
		if !s.OK {
			t.Errorf("%s: expected %s; observed %s", s.Name, s.Expected, s.Observed)
		}
	}
	if !report.OK || len(report.Steps) < 12 {
		t.Errorf("ok %t after %d steps", report.OK, len(report.Steps))
	}
}

// A monitor that never pauses must show: the steps read what happened.
func TestAStoryWithoutPauseIsReportedAsBroken(t *testing.T) {
	past := history()[:40]
	text, err := fleetFile(past)
	if err != nil {
		t.Fatal(err)
	}
	const anchor = "  - id: analyst-7\n"
	lax := bytes.Replace(text, []byte(anchor), []byte(anchor+"    thresholds: {pause: 100, suspend: 100}\n"), 1)
	if bytes.Equal(lax, text) {
		t.Fatal("the fleet file was not changed")
	}
	report, err := play(t.Context(), Options{}, lax, past)
	if err != nil {
		t.Fatal(err)
	}
	show(t, report)
	if report.OK {
		t.Error("the report is ok")
	}
	want := map[string]bool{
		"control plane": true, "read": true, "write": true, "injection": true, "forbidden tool": true, // holds without the monitor
		"pause": false, "hold": false, "review": false, "suspension": false,
		"kill": true, "old credentials": true, "ledger": true, "bundle changed": true, "covered up": true, // and so does this
	}
	for name, ok := range want {
		i := slices.IndexFunc(report.Steps, func(s Step) bool { return s.Name == name })
		if i < 0 {
			t.Errorf("no step %q", name)
		} else if report.Steps[i].OK != ok {
			t.Errorf("%s: ok %t, observed %s", name, report.Steps[i].OK, report.Steps[i].Observed)
		}
	}
}

func TestTheFleetFileIsOneThatAUserCouldWrite(t *testing.T) {
	text, err := fleetFile(history())
	if err != nil {
		t.Fatal(err)
	}
	f, err := fleet.Parse("fleet.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(f.Principals, func(p schemas.Principal) bool { return p.ID == analyst })
	if i < 0 {
		t.Fatalf("no %s", analyst)
	}
	p := f.Principals[i]
	if p.Thresholds != nil || p.Rate != nil {
		t.Errorf("the analyst has thresholds %v and rate %v of its own; the defaults must do", p.Thresholds, p.Rate)
	}
	if !slices.Equal(p.Ceiling.ForbiddenTools, forbiddenTools) || p.Ceiling.MaxTokens != maxTokens || p.Ceiling.TTLSeconds != ttl {
		t.Errorf("ceiling: forbidden %v, %d tokens, %d s", p.Ceiling.ForbiddenTools, p.Ceiling.MaxTokens, p.Ceiling.TTLSeconds)
	}
}

func TestOrdersAreReadFromTheInjectedTextAlone(t *testing.T) {
	for _, text := range praise {
		if o, obeyed := obey(text); obeyed || o != (orders{}) {
			t.Errorf("%q orders %+v", text, o)
		}
	}
	o, obeyed := obey(lure)
	if !obeyed || o.tool != "bash" || o.data != "data."+salaries || o.victim != writer {
		t.Errorf("the lure orders %+v", o)
	}
	if !strings.Contains(o.mail, "@") || strings.HasSuffix(o.url, ",") {
		t.Errorf("addresses %q and %q", o.mail, o.url)
	}
}

func TestAForgerNeedsTheRecordToBeThere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "000001.sst")
	before := []byte("nothing of interest")
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if hit, err := strike(dir, []byte("record")); err == nil {
		t.Errorf("struck %+v", hit)
	}
	hit, err := strike(dir, []byte("interest"))
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for i := range before {
		if before[i] != after[i] {
			changed++
		}
	}
	if changed != 1 || len(after) != len(before) || after[hit.offset] == before[hit.offset] {
		t.Errorf("%q became %q at %d", before, after, hit.offset)
	}
	hit.block = block{0, 4}
	if err := putRight(hit); err == nil {
		t.Error("a checksum was put right outside of the file's blocks")
	}
}

func TestTheWarehouseHasNoOtherTables(t *testing.T) {
	db, err := openWarehouse(t.TempDir(), history()[:2])
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := readTable(db, "sales_w03_2020"); !errors.Is(err, errNoTable) {
		t.Errorf("error %v", err)
	}
	s, err := readTable(db, quarter.Table)
	if err != nil || len(s.Rows) == 0 {
		t.Fatalf("%d rows, %v", len(s.Rows), err)
	}
	lines, err := unpack(s.Comments)
	if err != nil || !slices.ContainsFunc(lines, func(l []string) bool { return l[1] == lure }) {
		t.Errorf("the comments lack the lure: %v", err)
	}
}
