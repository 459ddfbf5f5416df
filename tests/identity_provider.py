"""An identity provider for tests: keys, tokens, and a real HTTP server that publishes the keys.

Signer     one key of a provider, which signs what it is given
Published  the server: what it answers can be changed while it runs, and it counts who asks
"""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from aiohttp import web
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

ISSUER, AUDIENCE = "https://login.example.com", "https://agents.example.com"
TABLE = {"issuer": ISSUER, "audience": AUDIENCE, "tenant": "acme", "confined": False}


@cache
def rsa_key(number: int = 0) -> RSAKey:
    """An RSA key; making one takes long, so tests share them by number."""
    return RSAKey.generate_key(2048)


class Signer:
    """A key and its name; bytes for a key are the secret of an HMAC."""

    def __init__(self, algorithm: str = "EdDSA", kid: str | None = "k1", key: Any = None) -> None:
        made = {"R": rsa_key, "P": rsa_key, "E": lambda: ECKey.generate_key("P-256")}
        ed = algorithm.startswith("Ed")
        self.algorithm, self.kid = algorithm, kid
        self.key = key or (OKPKey.generate_key("Ed25519") if ed else made[algorithm[0]]())

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half."""
        return {**self.key.as_dict(private=False), **({"kid": self.kid} if self.kid else {}), "use": "sig"}

    def token(self, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """Sign good claims, changed as asked; what is None is left out."""
        now = int(time.time())
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 600, "scope": "runs:read"}
        return self.signed(json.dumps({k: v for k, v in (good | claims).items() if v is not None}), header)

    def signed(self, payload: str | bytes, header: Mapping[str, Any] | None = None) -> str:
        """Sign a payload as it stands."""
        head = {"alg": self.algorithm, "typ": "JWT", "kid": self.kid} | dict(header or {})
        head = {name: value for name, value in head.items() if value is not None}
        said = f"{coded(json.dumps(head))}.{coded(payload)}"
        if isinstance(self.key, bytes):
            return f"{said}.{coded(hmac.digest(self.key, said.encode(), 'sha256'))}"
        algorithm = jws.JWSRegistry.algorithms[head["alg"]]
        return f"{said}.{coded(algorithm.sign(said.encode(), self.key))}"


def coded(data: str | bytes) -> str:
    """Base64url, as tokens have it."""
    return base64.urlsafe_b64encode(data if isinstance(data, bytes) else data.encode()).decode().rstrip("=")


class Published:
    """A provider's keys at a URL."""

    def __init__(self, signers: Sequence[Signer]) -> None:
        self.asked, self.url = 0, ""
        self.status, self.headers, self.body = 200, {}, b""
        self.answering = asyncio.Event()
        self.answering.set()
        self.publish(*signers)

    def publish(self, *signers: Signer) -> None:
        """Replace the keys."""
        self.body = json.dumps({"keys": [one.jwk for one in signers]}).encode()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        await self.answering.wait()
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@asynccontextmanager
async def published(*signers: Signer) -> AsyncIterator[Published]:
    """Serve a provider's keys."""
    provider = Published(signers)
    app = web.Application()
    app.router.add_get("/keys", provider.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
        yield provider
    finally:
        provider.answering.set()
        await runner.cleanup()
