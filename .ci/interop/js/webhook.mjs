// A receiver of webhooks, which verifies with the library of the Standard
// Webhooks specification. It adds itself to the control plane, has a message of
// the type test sent, pauses an agent, and waits to be told.
import { execFile } from "node:child_process";
import { createServer } from "node:http";
import { promisify } from "node:util";
import { Webhook } from "standardwebhooks";

const { WRIT } = process.env;
const writ = async (...args) => {
  const { stdout } = await promisify(execFile)(WRIT, ["--json", ...args]);
  return JSON.parse(stdout);
};

const received = [];
const server = createServer((req, res) => {
  const parts = [];
  req.on("data", (part) => parts.push(part));
  req.on("end", () => {
    received.push({ headers: req.headers, body: Buffer.concat(parts).toString() });
    res.writeHead(204).end();
  });
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

const until = async (what, found) => {
  for (const end = Date.now() + 60_000; ; await new Promise((r) => setTimeout(r, 50))) {
    const got = await found();
    if (got) return got;
    if (Date.now() > end) throw new Error(`not in time: ${what}`);
  }
};

const refused = (verify) => {
  try {
    verify();
  } catch {
    return true;
  }
  return false;
};

const { secret } = await writ("webhook", "add", "interop", "--url", `http://127.0.0.1:${server.address().port}/`, "--event", "paused");
const verifier = new Webhook(secret);
const say = (ok, what) => console.log(`${ok ? "ok" : "FAIL"} webhooks: ${what}`);

await writ("webhook", "test", "interop");
say(verifier.verify(received[0].body, received[0].headers).type === "test", "a test message verifies");

await until("the webhook begins", async () => (await writ("webhook", "list")).webhooks[0].seq !== undefined);
const receipt = await writ("pause", "hooked", "--reason", "interop");
const { headers, body } = await until("a delivery", () => received[1]);
const told = verifier.verify(body, headers);
say(told.type === "paused" && told.data.agent_id === "hooked" && told.data.seq === receipt.seq, "a pause is told and verifies");
say(refused(() => verifier.verify(body.replace("hooked", "others"), headers)), "a changed body does not");
say(refused(() => verifier.verify(body, { ...headers, "webhook-id": "other" })), "nor another id");
say(refused(() => verifier.verify(body, { ...headers, "webhook-timestamp": String(Number(headers["webhook-timestamp"]) - 600) })), "nor another time");
await writ("resume", "hooked", "--reason", "interop");
await writ("webhook", "remove", "interop");
server.close();
