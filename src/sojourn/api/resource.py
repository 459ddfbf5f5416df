"""/.well-known/oauth-protected-resource: where an OAuth client gets a token for this server. `guard` points to it.

The rule: it says what the settings say, and nothing about who calls.
"""

from urllib.parse import urlsplit

import msgspec

from sojourn.api.route import Answer, Ask, Route
from sojourn.errors import NotFound
from sojourn.identity.scopes import SCOPES

PATH = "/.well-known/oauth-protected-resource"


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """Protected resource metadata. Source: RFC 9728, section 2."""

    resource: str
    """This server, as its callers name it."""
    authorization_servers: tuple[str, ...]
    """The issuers whose tokens it takes."""
    scopes_supported: tuple[str, ...]
    bearer_methods_supported: tuple[str, ...] = ("header",)
    resource_name: str = "Sojourn"
    resource_documentation: str


def location(public_url: str) -> str | None:
    """Where the metadata of a server is; a path goes behind the well-known one. Source: RFC 9728, section 3.1."""
    if not public_url:
        return None
    url = urlsplit(public_url)
    return f"{url.scheme}://{url.netloc}{PATH}{url.path}"


async def show(ask: Ask[None, None]) -> Answer:
    """Show the metadata."""
    settings = ask.parts.settings
    if not settings.public_url:
        raise NotFound("This server does not say how it is reached: its operator sets SOJOURN_PUBLIC_URL.")
    return Answer(
        body=Resource(
            resource=settings.public_url,
            authorization_servers=tuple(dict.fromkeys(one.issuer for one in settings.issuers.values())),
            scopes_supported=tuple(SCOPES),
            resource_documentation=f"{settings.public_url}/docs",
        )
    )


ROUTES = (
    Route(
        method="GET",
        path=PATH,
        handler=show,
        summary="Where OAuth clients get a token for this server",
        detail="OAuth 2.0 Protected Resource Metadata (RFC 9728). It needs the setting public_url.",
        tag="keys",
        public=True,
        answers={200: (Resource, "The metadata")},
        refusals=("request.not_found",),
    ),
)
