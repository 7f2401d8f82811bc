// What an agent needs beside the stock NATS client: a capability over HTTP, by
// its identity and a DPoP proof (RFC 9449), and a look at capabilities of
// others (RFC 7519, JWKS). jose does the cryptography.
import { createHash, randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import * as http from "node:http";
import * as https from "node:https";
import { json } from "node:stream/consumers";
import { createRemoteJWKSet, importJWK, jwtVerify, SignJWT } from "jose";
import { fromSeed } from "@nats-io/nkeys";

// identity reads the .creds file that writ enroll wrote: the agent's user JWT,
// and the seed of its NKey, which never leaves the agent. Where TLS is on, folder
// is the one of --svid-dir, with the agent's certificate.
export async function identity(file, folder) {
  const text = await readFile(file, "utf8");
  const part = (name) => text.match(new RegExp(`-----BEGIN ${name}-----\\s+(\\S+)`))[1];
  const seed = new TextEncoder().encode(part("USER NKEY SEED"));
  const publicKey = fromSeed(seed).getPublicKey();
  const x = bytesOf(publicKey).subarray(1, 33);
  const d = bytesOf(part("USER NKEY SEED")).subarray(2, 34);
  const jwk = { kty: "OKP", crv: "Ed25519", x: base64url(x) };
  const tls = folder && {
    cert: await readFile(`${folder}/svid.pem`), key: await readFile(`${folder}/svid_key.pem`), ca: await readFile(`${folder}/bundle.pem`),
  };
  return { tls, jwt: part("NATS USER JWT"), seed, publicKey, jwk, key: await importJWK({ ...jwk, d: base64url(d) }, "EdDSA") };
}

// An Issuer is the issuer's HTTP API as one agent sees it.
export class Issuer {
  #nonce;
  constructor(url, who) {
    this.url = url;
    this.who = who;
  }
  issue(request) { return this.#post("/v1/tokens", { public_key: this.who.publicKey, ...request }); }
  refresh(operation) { return this.#post("/v1/tokens/refresh", { operation_id: operation }); }
  revoke(token) { return this.#post("/v1/tokens/revoke", { token }); }

  async #post(path, body, again = true) {
    const htu = this.url + path;
    const { status, headers, answer } = await post(htu, this.who.tls, {
      "content-type": "application/json",
      authorization: `DPoP ${this.who.jwt}`,
      dpop: await proof(this.who, "POST", htu, this.who.jwt, this.#nonce),
    }, JSON.stringify(body));
    this.#nonce = headers["dpop-nonce"] ?? this.#nonce;
    if (status === 200) return answer;
    const why = answer; // problem details (RFC 9457)
    if (again && why.reason === "proof without the nonce") return this.#post(path, body, false);
    throw Object.assign(new Error(`${why.status} ${why.detail}`), why);
  }
}

// post sends a request, and shows the agent's certificate where there is one:
// in TLS itself, for a header proves nothing.
function post(url, tls, headers, body) {
  return new Promise((resolve, reject) => {
    const { request } = url.startsWith("https:") ? https : http;
    const r = request(url, { method: "POST", headers: { ...headers, "content-length": Buffer.byteLength(body) }, ...tls }, (res) => {
      json(res).then((answer) => resolve({ status: res.statusCode, headers: res.headers, answer }), reject);
    });
    r.on("error", reject);
    r.end(body);
  });
}

// proof shows, for one request, that the agent holds its key.
export function proof(who, htm, htu, token, nonce) {
  return new SignJWT({ htm, htu, jti: randomUUID(), ath: base64url(createHash("sha256").update(token).digest()), ...(nonce && { nonce }) })
    .setProtectedHeader({ typ: "dpop+jwt", alg: "EdDSA", jwk: who.jwk })
    .setIssuedAt()
    .sign(who.key);
}

// A verifier verifies capabilities offline, under the issuer's public keys.
export function verifier(url, trustDomain, audience = trustDomain) {
  const keys = createRemoteJWKSet(new URL("/.well-known/jwks.json", url));
  return async (token) => {
    const { payload } = await jwtVerify(token, keys, {
      issuer: `spiffe://${trustDomain}/issuer`, audience, typ: "writ-capability+jwt", algorithms: ["EdDSA"],
      requiredClaims: ["exp", "nbf", "jti", "cnf", "agent_id", "operation_id"],
    });
    return payload;
  };
}

// allows says whether a capability grants a scope; a denial always wins.
export function allows(claims, scope) {
  const tool = scope.startsWith("call:") && scope.slice("call:".length);
  if (tool && (claims.forbidden_tools ?? []).includes(tool)) return false;
  return (claims.scope ?? "").split(" ").includes(scope) || Boolean(tool) && (claims.tools ?? []).includes(tool);
}

const base64url = (bytes) => Buffer.from(bytes).toString("base64url");

// bytesOf decodes the base32 of an NKey, whose checksum nkeys has seen.
function bytesOf(nkey) {
  const bits = [...nkey].map((c) => "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".indexOf(c).toString(2).padStart(5, "0")).join("");
  return Uint8Array.from(bits.match(/.{8}/g), (b) => parseInt(b, 2));
}
