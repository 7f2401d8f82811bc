"""What an agent needs beside the stock NATS client: a capability over HTTP, by
its identity and a DPoP proof (RFC 9449), and a look at capabilities of others
(RFC 7519, JWKS). joserfc does the cryptography."""

import base64
import hashlib
import json
import re
import time
import uuid

import requests
from joserfc import jwk, jwt


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Identity:
    """The .creds file that writ enroll wrote: the agent's user JWT, and the seed
    of its NKey, which never leaves the agent. Where TLS is on, svid_dir is the
    folder of --svid-dir, with the agent's certificate."""

    def __init__(self, path: str, svid_dir: str | None = None):
        self.cert, self.bundle = None, True
        if svid_dir:
            self.cert, self.bundle = (f"{svid_dir}/svid.pem", f"{svid_dir}/svid_key.pem"), f"{svid_dir}/bundle.pem"
        with open(path) as f:
            text = f.read()

        def part(name: str) -> str:
            return re.search(f"-----BEGIN {name}-----\\s+(\\S+)", text).group(1)

        self.jwt, self.seed = part("NATS USER JWT"), part("USER NKEY SEED")
        # The user JWT names the NKey that it is for; the seed is that key.
        body = self.jwt.split(".")[1]
        self.nkey = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["sub"]
        raw = base64.b32decode(self.seed + "=" * (-len(self.seed) % 8))[2:34]
        x = base64.b32decode(self.nkey + "=" * (-len(self.nkey) % 8))[1:33]
        self.public = {"kty": "OKP", "crv": "Ed25519", "x": b64(x)}
        self.key = jwk.OKPKey.import_key({**self.public, "d": b64(raw)})

    def creds(self, user_jwt: str) -> str:
        """The content of a .creds file for a capability of this key."""
        return (
            f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.seed}\n------END USER NKEY SEED------\n"
        )

    def proof(self, method: str, url: str, token: str, nonce: str | None) -> str:
        """Shows, for one request, that the agent holds its key."""
        claims = {"jti": str(uuid.uuid4()), "htm": method, "htu": url, "iat": int(time.time()),
                  "ath": b64(hashlib.sha256(token.encode()).digest())}
        if nonce:
            claims["nonce"] = nonce
        return jwt.encode({"typ": "dpop+jwt", "alg": "EdDSA", "jwk": self.public}, claims, self.key, algorithms=["EdDSA"])


class Refused(Exception):
    """Problem details (RFC 9457): why, and what would be allowed."""

    def __init__(self, problem: dict):
        super().__init__(f"{problem['status']} {problem.get('detail')}")
        self.status, self.reason = problem["status"], problem.get("reason")


class Issuer:
    """The issuer's HTTP API as one agent sees it."""

    def __init__(self, url: str, who: Identity):
        self.url, self.who, self.nonce = url, who, None

    def issue(self, **request) -> dict:
        return self._post("/v1/tokens", request)

    def refresh(self, operation_id: str) -> dict:
        return self._post("/v1/tokens/refresh", {"operation_id": operation_id})

    def revoke(self, token: str) -> dict:
        return self._post("/v1/tokens/revoke", {"token": token})

    def _post(self, path: str, body: dict, again: bool = True) -> dict:
        url = self.url + path
        res = requests.post(url, json=body, timeout=30, allow_redirects=False, cert=self.who.cert, verify=self.who.bundle, headers={
            "Authorization": f"DPoP {self.who.jwt}",
            "DPoP": self.who.proof("POST", url, self.who.jwt, self.nonce),
        })
        self.nonce = res.headers.get("DPoP-Nonce", self.nonce)
        if res.status_code == 200:
            return res.json()
        why = Refused(res.json())
        if again and why.reason == "proof without the nonce":
            return self._post(path, body, again=False)
        raise why


class Verifier:
    """Verifies capabilities offline, under the issuer's public keys."""

    def __init__(self, url: str, trust_domain: str, audience: str | None = None, bundle: str | bool = True):
        self.keys = jwk.KeySet.import_key_set(requests.get(url + "/.well-known/jwks.json", timeout=30, verify=bundle).json())
        self.claims = jwt.JWTClaimsRegistry(
            iss={"essential": True, "value": f"spiffe://{trust_domain}/issuer"},
            aud={"essential": True, "value": audience or trust_domain},
            exp={"essential": True}, nbf={"essential": True}, jti={"essential": True},
        )

    def verify(self, token: str) -> dict:
        opened = jwt.decode(token, self.keys, algorithms=["EdDSA"])
        if opened.header.get("typ") != "writ-capability+jwt":
            raise ValueError("it is no capability")
        self.claims.validate(opened.claims)
        return opened.claims
