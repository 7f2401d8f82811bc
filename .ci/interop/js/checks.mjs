// The stock JavaScript client against a control plane. It exits with 0 where
// every check was made, whatever came of it: each prints its own line.
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import { jetstream } from "@nats-io/jetstream";
import { connect, credsAuthenticator } from "@nats-io/transport-node";

const { URL: servers, CREDS, WRIT } = process.env;
const timeout = 15_000; // ms, for whatever is waited for

function demand(condition, what) {
  if (!condition) throw new Error(what);
}

async function check(name, run) {
  try {
    await within(run(), name);
    console.log(`ok JavaScript: ${name}`);
  } catch (err) {
    console.log(`FAIL JavaScript: ${name}`);
    console.log(`     ${err?.stack ?? err}`);
  }
}

function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${timeout} ms: ${what}`)), timeout);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function open(who, options = {}) {
  const creds = await readFile(`${CREDS}/${who}.creds`);
  return connect({ servers, name: who, authenticator: credsAuthenticator(creds), ...options });
}

// arrivals subscribes, answers each message, and gives the messages out one by
// one.
async function arrivals(nc, subject, answer) {
  const sub = nc.subscribe(subject);
  await nc.flush();
  const seen = [], waiting = [];
  (async () => {
    for await (const m of sub) {
      m.respond(answer(m));
      const next = waiting.shift();
      if (next) next(m);
      else seen.push(m);
    }
  })().catch((err) => console.error(err));
  return () => seen.length > 0 ? Promise.resolve(seen.shift()) : new Promise((done) => waiting.push(done));
}

// refusal gives what the server itself refuses next.
async function refusal(nc) {
  for await (const s of nc.status()) {
    if (s.type === "error" && s.error?.name === "PermissionViolationError") return s.error;
  }
  throw new Error("the connection ended before anything was refused");
}

async function rejected(promise) {
  try {
    await promise;
  } catch (err) {
    return err;
  }
  throw new Error("it was not refused");
}

const header = (m, name) => m.headers?.get(name) ?? "";
const code = (m) => header(m, "Nats-Service-Error-Code");

let service, peer, caller, rogue, done, calls, asks, sends;
await check("a service, agents and their operations connect", async () => {
  service = await open("js-echo");
  calls = await arrivals(service, "in.call.js-echo", (m) => m.data);
  peer = await open("js-peer");
  asks = await arrivals(peer, "in.ask.*", (m) => `answer to ${m.string()}`);
  sends = await arrivals(peer, "in.send.*", () => "got it");
  caller = await open("js-caller", { reconnectTimeWait: 100, maxReconnectAttempts: 5 });
  rogue = await open("js-rogue");
  done = await open("js-done");
});
await check("calls a service", async () => {
  const m = await caller.request("out.op.call.js-echo", "to the service", { timeout });
  demand(code(m) === "", `refused: ${code(m)} ${header(m, "Nats-Service-Error")}`);
  demand(m.string() === "to the service", m.string());
  demand(header(m, "Writ-From") === "js-echo" && Number(header(m, "Writ-Seq")) > 0, "the answer's headers");
});
await check("the service sees who calls", async () => {
  const m = await calls();
  demand(m.subject === "in.call.js-echo" && header(m, "Writ-From") === "js-caller", `${m.subject} from ${header(m, "Writ-From")}`);
});
await check("asks an agent", async () => {
  const m = await caller.request("out.op.ask.js-peer", "a question", { timeout });
  demand(m.string() === "answer to a question" && header(m, "Writ-From") === "js-peer", m.string());
});
await check("the agent sees who asks", async () => {
  const m = await asks();
  demand(m.subject === "in.ask.js-caller" && header(m, "Writ-From") === "js-caller", m.subject);
});
let published;
await check("sends by stock JetStream publish, acknowledged with stream and sequence", async () => {
  published = await jetstream(caller).publish("out.op.send.js-peer", "by publish", { msgID: "one", timeout });
  demand(published.stream === "EVENTS" && published.seq > 0 && !published.duplicate, JSON.stringify(published));
});
await check("receives what was sent, under the acknowledged sequence", async () => {
  const m = await sends();
  demand(m.string() === "by publish" && m.subject === "in.send.js-caller", m.string());
  demand(Number(header(m, "Writ-Seq")) === published.seq, `sequence ${header(m, "Writ-Seq")}, not ${published.seq}`);
});
await check("a repeated publish is the first one", async () => {
  const again = await jetstream(caller).publish("out.op.send.js-peer", "by publish", { msgID: "one", timeout });
  demand(again.duplicate && again.seq === published.seq, JSON.stringify(again));
});
await check("intake refuses a capability that was given up, with 401", async () => {
  const identity = await open("js-identity");
  const gone = await identity.request("out.token.release", JSON.stringify({ operation_id: "done" }), { timeout });
  demand(gone.json().stream === "EVENTS", gone.string());
  const m = await done.request("out.done.call.js-echo", "x", { timeout });
  demand(code(m) === "401" && header(m, "Nats-Service-Error").includes("holds no capability for operation done"), `${code(m)} ${header(m, "Nats-Service-Error")}`);
  await identity.close();
});
await check("intake refuses what a newer grant lacks, with 403 and the reason, to a JetStream publish", async () => {
  const err = await rejected(jetstream(rogue).publish("out.op.ask.js-peer", "x", { timeout }));
  demand(err.name === "JetStreamApiError" && err.status === 403 && err.code === 20403, `${err.name} ${err.status} ${err.code}`);
  demand(err.message.includes("ask:js-peer is not in the scope of operation op"), err.message);
});
await check("the server refuses a forbidden tool", async () => {
  const refused = refusal(rogue);
  rogue.publish("out.op.call.bash", "x");
  const err = await refused;
  demand(err.operation === "publish" && err.subject === "out.op.call.bash", `${err.operation} ${err.subject}`);
});
await check("the server refuses another's deliveries and answers", async () => {
  for (const subject of ["writ.in.js-peer.>", "_R_.>", "$JS.API.>"]) {
    const refused = refusal(peer);
    peer.subscribe(subject, { callback: () => {} });
    const err = await refused;
    demand(err.operation === "subscription" && err.subject === subject, `${err.operation} ${err.subject}`);
  }
});
await check("a kill closes its connection, and its reconnects are refused", async () => {
  const closed = caller.closed();
  const { stdout } = await promisify(execFile)(WRIT, ["kill", "js-caller", "--reason", "interop", "--json"]);
  const receipt = JSON.parse(stdout);
  demand(receipt.state === "killed" && !receipt.partial, stdout);
  const why = await closed;
  demand(caller.isClosed() && /authorization/i.test(String(why)), `closed with: ${why}`);
});
await check("a new connection is refused", async () => {
  const err = await rejected(open("js-caller", { reconnect: false }));
  demand(err.name === "AuthorizationError", `${err.name}: ${err.message}`);
});
process.exit(0); // what a failed check left open is not waited for
