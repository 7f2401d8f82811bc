package traces

import (
	"bytes"
	"compress/gzip"
	"strings"
	"testing"
)

const two = `{"run":"a1","suite":"s","ut":"t1","atk":"none","n":1,"prompt":"pay","gt_tools":["pay"]}
{"r":"a1","i":0,"tool":"pay","sc":[["to","bob","p"],["id","7","t:list"]],"amt":3.5,"y":0,"ol":1}
{"run":"b2","suite":"s","ut":"t2","atk":"x","n":0,"prompt":"","hit":1}
`

func read(t *testing.T, s string) (runs []*Run, err error) {
	t.Helper()
	for r, e := range Read(strings.NewReader(s)) {
		if e != nil {
			return runs, e
		}
		runs = append(runs, r)
	}
	return runs, nil
}

func TestRunsAndCallsAreRead(t *testing.T) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte(two)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{two, z.String()} {
		runs, err := read(t, text)
		if err != nil || len(runs) != 2 {
			t.Fatalf("%d runs, %v", len(runs), err)
		}
		c := runs[0].Calls[0]
		if c.Tool != "pay" || len(c.Salient) != 2 || c.Salient[1] != (Value{"id", "7", "t:list"}) || len(runs[1].Calls) != 0 {
			t.Fatalf("%+v", runs[0])
		}
	}
}

func TestDamagedTracesNameTheLine(t *testing.T) {
	for text, want := range map[string]string{
		two + `{"r":"zz","i":0}`:         "line 4: a call of run zz outside of it",
		two + `{"x":1}`:                  "line 4: neither",
		two + `{"r":`:                    "line 4: unexpected end",
		`{"r":"a1","i":0}`:               "line 1: a call of run a1 outside of it",
		two + `{"r":"b2","sc":[["to"]]}`: "line 4: a salient value",
	} {
		if _, err := read(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestARecordedCallBecomesABodyOfNamesAndValues(t *testing.T) {
	runs, err := read(t, `{"run":"a","suite":"s","ut":"t","atk":"none","n":3,"prompt":"ask Dora"}
{"r":"a","i":0,"tool":"find","ak":"q","sc":[["q","dora","p"]]}
{"r":"a","i":1,"tool":"mail","ak":"body,to","sc":[["to","dora@a.example","t:find"],["to","eve@a.example","p"],["to","eve@a.example","p"]],"amt":2.5}
{"r":"a","i":2,"tool":"find","sc":[]}
{"r":"a","i":3,"tool":"mail","sc":[["to","carl@a.example","pt:find"]]}
`)
	if err != nil || len(runs) != 1 {
		t.Fatal(err)
	}
	r := runs[0]
	if got := string(r.Calls[1].Payload()); got != `{"body":"","to":"","values":{"amount":2.5,"to":["dora@a.example","eve@a.example"]}}` {
		t.Errorf("body %s", got)
	}
	for i, want := range map[int]string{0: `{"to":"dora@a.example"}`, 1: `{}`, 2: `{"to":"carl@a.example"}`} {
		if got := string(r.Output(i)); got != want {
			t.Errorf("output of call %d: %s, want %s", i, got, want)
		}
	}
	if got := r.Task(); got != "ask Dora; eve@a.example; carl@a.example" {
		t.Errorf("task %q", got)
	}
}
