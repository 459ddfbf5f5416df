"""One request to a webhook: bounded in time, followed nowhere, and to no address that the operator did not mean.

`sending.py` calls it. The rule: an address is checked where its socket is made, so that what a name meant before does
not matter; and of an answer nothing is read but the status.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from sojourn.errors import Invalid
from sojourn.identity import addresses
from sojourn.store.notices.deliveries import Delivery, Outcome

log = logging.getLogger("sojourn.worker")

TOTAL_S = 10.0
"""How long an attempt may take, from the name to the status."""
LOOK_UPS_MAX = 16
"""Names that are looked up at once, in threads of their own: slow ones hold up nobody but webhooks."""


class Outgoing:
    """Sends requests in the name of tenants. `hosts` may have addresses that are not public."""

    def __init__(self, *, http_allowed: bool, hosts: frozenset[str]) -> None:
        self._http_allowed, self._hosts = http_allowed, hosts
        self._threads = ThreadPoolExecutor(LOOK_UPS_MAX, thread_name_prefix="webhook-names")

    async def send(self, sent: Delivery) -> Outcome:
        """Post a delivery; whatever goes wrong is an outcome."""
        headers = {
            "User-Agent": "sojourn",
            "Content-Type": "application/json",
            "webhook-id": sent.id,
            "webhook-timestamp": str(sent.sent_s),
            "webhook-signature": sent.signature,
        }
        refused: list[str] = []
        try:
            host = addresses.checked(sent.url, http_allowed=self._http_allowed).hostname or ""
            async with asyncio.timeout(TOTAL_S):
                return Outcome(status=await self._post(sent, headers, self._socket_for(host, refused)))
        except TimeoutError:
            return Outcome(error="no answer in time")
        except Invalid:
            return Outcome(error="the URL is not allowed any more")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            log.debug("webhook.unreachable", extra={"webhook": sent.webhook_id, "kind": type(error).__name__})
            return Outcome(error="the address is not allowed" if refused else _named(error))

    async def _post(self, sent: Delivery, headers: Mapping[str, str], make_socket: Callable[..., socket.socket]) -> int:
        """Post over a connection of its own; the status of the answer."""
        connector = aiohttp.TCPConnector(
            resolver=Names(self._threads), use_dns_cache=False, force_close=True, socket_factory=make_socket
        )
        jar = aiohttp.DummyCookieJar()
        async with (
            aiohttp.ClientSession(connector=connector, cookie_jar=jar, auto_decompress=False) as session,
            session.post(sent.url, data=sent.body.encode(), headers=headers, allow_redirects=False) as answer,
        ):
            return answer.status

    def _socket_for(self, host: str, refused: list[str]) -> Callable[..., socket.socket]:
        """Make sockets for the addresses of a host that may be reached, and note the others."""

        def make(info: tuple[Any, ...]) -> socket.socket:
            family, kind, protocol, _, address = info
            if not addresses.reachable(address[0], host, self._hosts):
                refused.append(address[0])
                raise PermissionError("not a public address")
            return socket.socket(family, kind, protocol)

        return make

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Names(AbstractResolver):
    """The system's resolver, in threads of its own."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        )
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=socket.AI_NUMERICHOST
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Nothing is held but the threads, which are shared."""


def _named(error: Exception) -> str:
    """What went wrong, in words that hold nothing of the URL or the answer."""
    match error:
        case aiohttp.InvalidURL():
            return "the URL cannot be used"
        case aiohttp.ClientConnectorDNSError():
            return "the name is not known"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "the certificate is not accepted"
        case aiohttp.ClientConnectorError():
            return "no connection"
    return "no answer that is HTTP"
