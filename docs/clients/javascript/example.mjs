// An agent's day: a capability over HTTP, work over NATS with the stock client,
// a refresh in time, and the end. Each step that succeeds prints a line.
import { connect, jwtAuthenticator } from "@nats-io/transport-node";
import { allows, identity, Issuer, verifier } from "./writ.mjs";

const { WRIT_HTTP, NATS_URL, CREDS, SVID_DIR, TRUST_DOMAIN, TOOL, PEER } = process.env;

function demand(condition, what) {
  if (!condition) throw new Error(what);
}

const who = await identity(CREDS, SVID_DIR);
const issuer = new Issuer(WRIT_HTTP, who);
const verify = verifier(WRIT_HTTP, TRUST_DOMAIN);

// A capability for one operation: exactly what is asked, or a refusal.
let grant = await issuer.issue({
  operation_id: "js-example", scope: [`send:${PEER}`, `ask:${PEER}`], tools: [TOOL], forbidden_tools: ["bash"],
  ttl_seconds: 60, task: "show how it is done", ...(who.tls && { certificate_bound: true }),
});
console.log(`ok a capability over HTTP with DPoP: ${grant.jti}`);

// Anybody can verify it, offline, with a library that knows nothing of Writ.
const claims = await verify(grant.token);
demand(claims.agent_id === grant.agent_id && claims.jti === grant.jti, "the claims are another's");
demand(allows(claims, `call:${TOOL}`) && allows(claims, `send:${PEER}`) && !allows(claims, "call:bash"), "it grants something else");
demand(Boolean(claims.cnf["x5t#S256"]) === Boolean(who.tls), "it is bound to another certificate, or to none");
console.log("ok verified by jose through the JWKS");

const forged = grant.token.slice(0, -8) + "AAAAAAAA";
await verify(forged).then(() => demand(false, "a forged token was taken"), () => {});
await verifier(WRIT_HTTP, TRUST_DOMAIN, "another-service")(grant.token).then(() => demand(false, "it was taken by another service"), () => {});
console.log("ok a forged token, and one for somebody else, are refused");

// Work: the authenticator is asked at each connection, so it always has the
// newest capability.
const authenticator = jwtAuthenticator(() => grant.user_jwt, who.seed);
const open = () => connect({ servers: NATS_URL, authenticator, tls: who.tls });
const header = (m, name) => m.headers?.get(name) ?? "";
let nc = await open();
const call = async (subject, text) => {
  const m = await nc.request(`out.js-example.${subject}`, text, { timeout: 15_000 });
  const code = header(m, "Nats-Service-Error-Code");
  if (code) throw new Error(`${code} ${header(m, "Nats-Service-Error")}`);
  return m;
};
const answer = await call(`call.${TOOL}`, "hello");
demand(answer.string() === "hello", `the tool answered ${answer.string()}`);
console.log(`ok called a tool, event ${header(answer, "Writ-Seq")}`);
const sent = (await call(`send.${PEER}`, "a message")).json();
demand(sent.stream === "EVENTS" && sent.seq > 0, JSON.stringify(sent));
console.log(`ok sent a message, event ${sent.seq}`);

// Refresh at about four fifths of the life: a second connection before the
// first one ends.
grant = await issuer.refresh("js-example");
demand((await verify(grant.token)).jti !== claims.jti, "it is the same capability");
const old = nc;
nc = await open();
await old.drain();
await call(`call.${TOOL}`, "still there");
console.log("ok refreshed, and went on over a second connection");

// What is not granted is refused, with the reason.
await issuer.issue({ operation_id: "js-example", scope: ["read:payroll"] }).then(
  () => demand(false, "it was granted"),
  (why) => demand(why.status === 403 && why.detail.includes("beyond the ceiling"), why.message),
);
console.log("ok beyond the ceiling nothing is granted");

await issuer.revoke(grant.token);
await call(`call.${TOOL}`, "too late").then(() => demand(false, "it goes on"), (why) => demand(why.message.startsWith("401"), why.message));
console.log("ok given up: the capability is worth nothing now");
await nc.close();
