package demo
import ("testing";"context";"os";"path/filepath";"github.com/writ-sh/writ/schemas")
func TestZZ(t *testing.T){
 dir:=t.TempDir(); past:=history(); text,_:=fleetFile(past)
 os.WriteFile(filepath.Join(dir,"fleet.yaml"),text,0o600)
 ctx,cancel:=context.WithCancel(t.Context())
 s:=&story{Options:Options{Narrator:silent{},Actor:"op"},dir:dir,data:filepath.Join(dir,"data"),report:&Report{},cancel:cancel,periods:past}
 if err:=s.opening(ctx);err!=nil{t.Fatal(err)}
 defer s.clean()
 if err:=s.habits(ctx);err!=nil{t.Fatal(err)}
 all,_:=s.events(ctx,schemas.ReadRequest{})
 by:=map[uint64]*schemas.Event{}; for _,e:=range all {by[e.Seq]=e}
 lag:=0; n:=0
 for _,e:=range all { v,err:=verdict(e); if err!=nil||e.Agent!=analyst {continue}
  n++
  for q:=v.AsOf+1;q<e.Seq;q++ { if x:=by[q]; x!=nil&&x.Kind==schemas.ResponseAccepted&&x.To==analyst&&x.Operation==e.Operation { lag++; t.Log("LAG",e.Operation,e.Seq,e.Action,"asof",v.AsOf,"answer",q,"by",x.Agent); break } }
  for _,f:=range v.Factors { if f.ID=="fresh" { t.Log("FRESH",e.Operation,e.Seq,e.Action,"asof",v.AsOf,"score",float64(v.Score)/65536,"risk",v.ActionRisk,f.Observed); for q:=v.AsOf-3;q<e.Seq;q++ { if x:=by[q];x!=nil {t.Log("    ",q,x.Kind,x.Agent,x.Action,x.To)} } } } }
 t.Log("verdicts",n,"lagging behind an answer of the own operation",lag)
}
