"""Images and files that messages name by digest: which ones a request needs, and how they are told to a model.

The worker reads the bytes of `attachments` and puts them into the Request; the dialects show them. The rule: their
number and size are bounded, and what cannot be shown is said in words, or refused with a reason.
"""

from collections.abc import Iterable

from sojourn.loop.messages import File, Image, Message
from sojourn.models.model import ModelFailed

IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
"""What both dialects take. Source: the vision guides of OpenAI and Anthropic (2026-11)."""
PDF = "application/pdf"
ATTACHMENTS_MAX = 100
ATTACHED_BYTES_MAX = 24 << 20
"""As base64 they are the 32 MB that Anthropic takes as a request; OpenAI takes more."""


def attachments(messages: Iterable[Message]) -> tuple[str, ...]:
    """List the digests of all images and files of a transcript, once each. Raises ModelFailed if there are too many."""
    parts = (part for message in messages if message.role == "user" for part in message.parts)
    found = tuple(dict.fromkeys(part.blob for part in parts if isinstance(part, Image | File)))
    if len(found) > ATTACHMENTS_MAX:
        told = f"The transcript has {len(found)} images and files, more than {ATTACHMENTS_MAX}; begin a new session."
        raise ModelFailed("too_long", told, retry=False)
    return found


def fits(attached_bytes: int) -> None:
    """See that the images and files of a request are not too large together. Raises ModelFailed."""
    if attached_bytes > ATTACHED_BYTES_MAX:
        told = f"The images and files of the transcript are {attached_bytes:,} bytes, more than {ATTACHED_BYTES_MAX:,}"
        raise ModelFailed("too_long", f"{told}; begin a new session or use smaller ones.", retry=False)


def visible(part: Image) -> str:
    """Name the type of a picture that is to be shown. Raises ModelFailed for one that no provider takes."""
    if part.media_type not in IMAGE_TYPES:
        told = f"A picture of type {part.media_type[:64]!r} cannot be shown to a model; send {', '.join(IMAGE_TYPES)}."
        raise ModelFailed("media_type", told, retry=False)
    return part.media_type


def unknown(part: Image | File) -> str:
    """Tell the model of an attachment whose bytes are not here."""
    name = part.name if isinstance(part, File) and part.name else part.blob
    kind = "image" if isinstance(part, Image) else "file"
    return f"[The {kind} {name} ({part.media_type}) is not kept here any more and cannot be shown.]"


def readable(part: File) -> bool:
    """Tell whether a file can be shown to any model as words."""
    return part.media_type.startswith("text/") or part.media_type in {"application/json", "application/xml"}


def as_words(part: File, data: bytes) -> str:
    """Show a file as words: its text, or a note that there is one."""
    if readable(part):
        return f"File {part.name or part.blob}:\n{data.decode('utf-8', 'replace')}"
    return f"[The file {part.name or part.blob} ({part.media_type}, {len(data):,} bytes) cannot be shown here.]"
