"""A capability over HTTP, verified offline, work over NATS with nats-py where
NATS_URL is set, and the end. Each step that succeeds prints a line."""

import asyncio
import os
import ssl
import tempfile

from joserfc.errors import JoseError

from writ import Identity, Issuer, Refused, Verifier


def demand(condition, what):
    if not condition:
        raise SystemExit(f"FAIL {what}")


def refused(what, call):
    try:
        call()
    except (Refused, JoseError) as why:
        return why
    raise SystemExit(f"FAIL {what}: it was not refused")


async def work(who: Identity, creds: str, tool: str):
    import nats

    tls = None
    if who.cert:
        tls = ssl.create_default_context(cafile=who.bundle)
        tls.load_cert_chain(*who.cert)

    with tempfile.NamedTemporaryFile("w", suffix=".creds") as f:  # readable by its owner alone
        f.write(creds)
        f.flush()
        nc = await nats.connect(os.environ["NATS_URL"], user_credentials=f.name, tls=tls)
        m = await nc.request(f"out.py-example.call.{tool}", b"hello", timeout=15)
        demand("Nats-Service-Error-Code" not in (m.headers or {}), f"refused: {m.headers}")
        print(f"ok called a tool: {m.data.decode()}")
        await nc.drain()


def main():
    http, domain, tool = os.environ["WRIT_HTTP"], os.environ["TRUST_DOMAIN"], os.environ["TOOL"]
    who = Identity(os.environ["CREDS"], os.environ.get("SVID_DIR"))
    issuer, verifier = Issuer(http, who), Verifier(http, domain, bundle=who.bundle)

    # The capability is for the identity's own key: no seed travels.
    grant = issuer.issue(operation_id="py-example", public_key=who.nkey, tools=[tool], forbidden_tools=["bash"],
                         ttl_seconds=60, task="show how it is done", certificate_bound=who.cert is not None)
    print(f"ok a capability over HTTP with DPoP: {grant['jti']}")

    claims = verifier.verify(grant["token"])
    demand(claims["jti"] == grant["jti"] and tool in claims["tools"], "the claims are another's")
    demand(("x5t#S256" in claims["cnf"]) == (who.cert is not None), "it is bound to another certificate, or to none")
    print("ok verified by joserfc through the JWKS")

    refused("a forged token", lambda: verifier.verify(grant["token"][:-8] + "AAAAAAAA"))
    refused("another audience", lambda: Verifier(http, domain, "another-service", who.bundle).verify(grant["token"]))
    why = refused("beyond the ceiling", lambda: issuer.issue(operation_id="py-example", scope=["read:payroll"]))
    demand(why.status == 403, f"{why}")
    print("ok forged, for somebody else, beyond the ceiling: refused")

    if "NATS_URL" in os.environ:
        asyncio.run(work(who, who.creds(grant["user_jwt"]), tool))

    grant = issuer.refresh("py-example")
    demand(verifier.verify(grant["token"])["jti"] != claims["jti"], "it is the same capability")
    issuer.revoke(grant["token"])
    demand(refused("given up", lambda: issuer.refresh("py-example")).status == 401, "it goes on")
    print("ok refreshed, and given up")


if __name__ == "__main__":
    main()
