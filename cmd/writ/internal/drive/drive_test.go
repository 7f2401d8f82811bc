package drive

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-sh/writ/cmd/writ/internal/plane"
	"github.com/writ-sh/writ/internal/bus"
	"github.com/writ-sh/writ/schemas"
)

// recorded makes runs of two suites; every run of the second ends with a tool
// whose name no subject can carry.
func recorded(t *testing.T, runs int) (traces, tools string) {
	t.Helper()
	var b strings.Builder
	for i := range runs {
		suite, last := "office", "send_note"
		if i%2 == 1 {
			suite, last = "shop", "Send Note*"
		}
		fmt.Fprintf(&b, `{"run":"r%04d","suite":%q,"ut":"task_%d","atk":"none","n":2,"prompt":"note for dora","gt_tools":["find_person"]}`+"\n", i, suite, i%3)
		fmt.Fprintf(&b, `{"r":"r%04d","i":0,"tool":"find_person","sc":[["q","dora","p"]],"y":0}`+"\n", i)
		fmt.Fprintf(&b, `{"r":"r%04d","i":1,"tool":%q,"sc":[["to","dora@office.example","t:find_person"],["to","carl@office.example","p"]],"y":0,"amt":2.5}`+"\n", i, last)
	}
	dir := t.TempDir()
	traces, tools = filepath.Join(dir, "runs.ndjson"), filepath.Join(dir, "tools.json")
	for path, text := range map[string]string{traces: b.String(), tools: `{"find_person":{"class":"R"},"send_note":{"class":"X"}}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return traces, tools
}

func TestEveryRecordedCallIsCountedAndNoneIsLost(t *testing.T) {
	ctx := context.Background()
	p, err := plane.Start(ctx, plane.Options{Data: filepath.Join(t.TempDir(), "data")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
	}()
	operator, err := p.Operator()
	if err != nil {
		t.Fatal(err)
	}
	defer operator.Close()
	traces, tools := recorded(t, 12)
	for _, capability := range []bool{false, true} {
		r, err := Run(ctx, Options{Traces: traces, Tools: tools, Runs: 10, Capability: capability, URL: p.URL(), Operator: operator, Actor: "test"})
		if err != nil {
			t.Fatal(err)
		}
		if r.Runs != 10 || r.Calls != 20 || r.Accepted+r.Held+r.Denied != r.Calls || r.Lost != 0 {
			t.Errorf("capability %t: %+v", capability, r)
		}
		// The nameless tool is denied in each run of the second suite; with
		// an ideal token, so is the note that nobody asked for.
		if least := map[bool]int{false: 5, true: 10}[capability]; r.Denied < least || r.Accepted == 0 {
			t.Errorf("capability %t: %d denied, want at least %d, and %d accepted", capability, r.Denied, least, r.Accepted)
		}
	}
	v, err := bus.Call[schemas.VerifyReply](ctx, operator, schemas.CtlVerify, nil)
	if err != nil || !v.OK {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestARecordedCallBecomesABodyOfKindsAndValues(t *testing.T) {
	traces, tools := recorded(t, 1)
	runs, _, err := load(Options{Traces: traces, Tools: tools})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(payload(runs[0].Calls[1])); got != `{"amount":2.5,"to":["dora@office.example","carl@office.example"]}` {
		t.Errorf("body %s", got)
	}
	if got := string(output(runs[0], 0)); got != `{"to":"dora@office.example"}` {
		t.Errorf("output %s", got)
	}
}
