// The stock JavaScript client against a control plane with TLS: credentials,
// and a certificate that belongs to them. Prints as checks.mjs does.
import { readFile } from "node:fs/promises";
import { connect, credsAuthenticator, jwtAuthenticator } from "@nats-io/transport-node";

const { URL: servers, CREDS, BUNDLE } = process.env;
const timeout = 15_000; // ms

function demand(condition, what) {
  if (!condition) throw new Error(what);
}

async function check(name, run) {
  try {
    await run();
    console.log(`ok JavaScript, TLS: ${name}`);
  } catch (err) {
    console.log(`FAIL JavaScript, TLS: ${name}`);
    console.log(`     ${err?.stack ?? err}`);
  }
}

// open connects with the credentials of one and the certificate of another.
async function open(who, certificate = who) {
  const authenticator = credsAuthenticator(await readFile(`${CREDS}/${who}.creds`));
  const own = certificate && { certFile: `${CREDS}/${certificate}/svid.pem`, keyFile: `${CREDS}/${certificate}/svid_key.pem` };
  return connect({ servers, name: who, authenticator, timeout, reconnect: false, tls: { caFile: BUNDLE, ...own } });
}

async function rejected(promise) {
  let nc;
  try {
    nc = await promise;
  } catch (err) {
    return err;
  }
  await nc.close();
  throw new Error("it was let in");
}

let service, caller;
await check("a service and an agent connect, each with its certificate", async () => {
  service = await open("tls-echo");
  service.subscribe("in.call.tls-echo", { callback: (_, m) => m.respond(m.data) });
  await service.flush();
  caller = await open("tls-caller");
});
await check("calls a service", async () => {
  const m = await caller.request("out.op.call.tls-echo", "to the service", { timeout });
  demand(m.string() === "to the service" && m.headers?.get("Writ-From") === "tls-echo", m.string());
});
await check("another agent's certificate with valid credentials is refused", async () => {
  const err = await rejected(open("tls-caller", "tls-echo"));
  demand(/authorization/i.test(err.message), err.message);
});
await check("valid credentials without a certificate are refused", async () => {
  const err = await rejected(open("tls-caller", null));
  demand(/authorization/i.test(err.message), err.message);
});
await check("credentials whose nonce another key signs are refused", async () => {
  const jwt = /BEGIN NATS USER JWT-+\s+(\S+)/.exec(await readFile(`${CREDS}/tls-caller.creds`, "utf8"))[1];
  const seed = /BEGIN USER NKEY SEED-+\s+(\S+)/.exec(await readFile(`${CREDS}/tls-echo.creds`, "utf8"))[1];
  const err = await rejected(connect({
    servers, timeout, reconnect: false, authenticator: jwtAuthenticator(jwt, new TextEncoder().encode(seed)),
    tls: { caFile: BUNDLE, certFile: `${CREDS}/tls-caller/svid.pem`, keyFile: `${CREDS}/tls-caller/svid_key.pem` },
  }));
  demand(/authorization|timeout|closed/i.test(err.message), err.message);
});
await check("renews its certificate over NATS, and connects with it", async () => {
  const csr = await readFile(`${CREDS}/renewed/csr.pem`, "utf8");
  const m = await caller.request("out.token.refresh", JSON.stringify({ operation_id: "op", csr }), { timeout });
  demand(!m.headers?.get("Nats-Service-Error"), m.headers?.get("Nats-Service-Error"));
  const { svid, bundle, user_jwt } = m.json();
  const seed = /BEGIN USER NKEY SEED-+\s+(\S+)/.exec(await readFile(`${CREDS}/tls-caller.creds`, "utf8"))[1];
  const nc = await connect({
    servers, timeout, reconnect: false, authenticator: jwtAuthenticator(user_jwt, new TextEncoder().encode(seed)),
    tls: { ca: bundle, cert: svid, key: await readFile(`${CREDS}/renewed/key.pem`, "utf8") },
  });
  const answer = await nc.request("out.op.call.tls-echo", "once more", { timeout });
  demand(answer.string() === "once more", answer.string());
  await nc.close();
});
await Promise.all([service, caller].map((nc) => nc?.close()));
