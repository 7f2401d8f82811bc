package drive

import (
	"maps"
	"slices"

	"github.com/writ-sh/writ/monitor/traces"
	"github.com/writ-sh/writ/schemas"
)

// ServiceID is the stub service that stands for all recorded tools.
const ServiceID = "drive-tools"

// classes of the manifest in the fleet file's words.
var classes = map[string]string{"R": "read", "W": "write", "X": "egress"}

// toolsOf lists the tools that a token for a run names, sorted. Names that
// are no ids can't be granted.
func toolsOf(run *traces.Run, capability bool) []string {
	set := map[string]bool{}
	if capability {
		for _, t := range run.GTTools {
			set[t] = true
		}
	} else {
		for _, c := range run.Calls {
			set[c.Tool] = true
		}
	}
	maps.DeleteFunc(set, func(t string, _ bool) bool { return schemas.CheckID("tool", t) != nil })
	return slices.Sorted(maps.Keys(set))
}

// principals are the agents, one per suite, and the stub service that the runs
// need.
func principals(runs []*traces.Run, manifest map[string]traces.Tool) []schemas.Principal {
	tools, jobs := map[string]map[string]bool{}, map[string]map[string]bool{}
	served := map[string]schemas.Tool{}
	for _, run := range runs {
		if tools[run.Suite] == nil {
			tools[run.Suite], jobs[run.Suite] = map[string]bool{}, map[string]bool{}
		}
		if schemas.CheckID("job", run.UserTask) == nil {
			jobs[run.Suite][run.UserTask] = true
		}
		for _, t := range slices.Concat(toolsOf(run, false), toolsOf(run, true)) {
			tools[run.Suite][t] = true
			served[t] = schemas.Tool{Class: classes[manifest[t].Class], Description: manifest[t].Description}
		}
	}
	var out []schemas.Principal
	for _, suite := range slices.Sorted(maps.Keys(tools)) {
		out = append(out, schemas.Principal{ID: suite, Kind: schemas.KindAgent,
			Rate: &schemas.Rate{PerSecond: 10_000, Burst: 10_000},
			Ceiling: &schemas.Ceiling{Tools: slices.Sorted(maps.Keys(tools[suite])), TTLSeconds: 3600,
				Jobs: slices.Sorted(maps.Keys(jobs[suite]))}})
	}
	service := schemas.Principal{ID: ServiceID, Kind: schemas.KindService, Tools: served}
	for _, t := range slices.Sorted(maps.Keys(served)) {
		service.Serves = append(service.Serves, schemas.VerbCall+":"+t)
	}
	return append(out, service)
}
