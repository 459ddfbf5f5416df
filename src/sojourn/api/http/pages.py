"""What every list takes: how many, and where to go on."""

from typing import Annotated

import msgspec
from msgspec import Meta

Cursor = Annotated[str, Meta(max_length=300, description="The `next` of the page before.")]
Size = Annotated[int, Meta(ge=1, le=200, description="How many at most.")]


class Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A cursor page."""

    after: Cursor | None = None
    limit: Size = 50
