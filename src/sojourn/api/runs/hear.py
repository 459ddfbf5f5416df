"""What a user says, as a message of the transcript. Called by whatever starts a run or talks to one.

The rule: what a model would stumble over later is refused here, and points at the part: no words, too many, a blob that
is not there, a picture that is none.
"""

from sojourn.api.parts import Acting
from sojourn.api.runs.shapes import FilePart, ImagePart, Input, Part, TextPart
from sojourn.errors import Invalid, TooLarge
from sojourn.loop import messages as msg
from sojourn.store.db import Connection
from sojourn.store.tenant import blobs

BEGINNINGS = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}
"""How each kind of picture that the models' providers take begins."""


async def heard(ask: Acting, connection: Connection, id_: str, given: Input) -> msg.Message:
    """A user's message. Raises Invalid and TooLarge."""
    if isinstance(given, str):
        given = [TextPart(given)]
    wanted = [part.blob for part in given if not isinstance(part, TextPart)]
    kept = await blobs.about(connection, wanted, keep=True) if wanted else {}
    parts = tuple(_part(part, kept, f"/input/{i}") for i, part in enumerate(given) if not _is_blank(part))
    text_bytes = sum(len(part.text.encode()) for part in parts if isinstance(part, msg.Text))
    _bounded(ask, text_bytes, sum(kept[digest].size_bytes for digest in wanted))
    return msg.Message(id=id_, role="user", parts=parts)


def _bounded(ask: Acting, text_bytes: int, blob_bytes: int) -> None:
    """See that something is said, and not too much."""
    settings = ask.parts.settings
    if not text_bytes and not blob_bytes:
        raise Invalid("The input is empty; say what is to be done.", pointer="/input")
    if text_bytes > settings.message_max_bytes:
        raise TooLarge(
            f"The input is longer than {settings.message_max_bytes} bytes. Write it into a file of the session and "
            "name the file.",
            pointer="/input",
        )
    if blob_bytes > settings.blob_max_bytes:
        raise TooLarge(
            f"The images and files of one message are larger than {settings.blob_max_bytes} bytes together. Put what "
            "a program can read into the session's files.",
            pointer="/input",
        )


def _is_blank(part: Part) -> bool:
    """Whether it says nothing: providers refuse an empty text beside a picture."""
    return isinstance(part, TextPart) and not part.text.strip()


def _part(part: Part, kept: dict[str, blobs.Blob], pointer: str) -> msg.Part:
    """One part, with its blob looked up."""
    if isinstance(part, TextPart):
        return msg.Text(part.text)
    blob = kept.get(part.blob)
    if blob is None:
        raise Invalid(
            "There is no blob of that digest; POST /v1/blobs keeps one and tells its digest.",
            code="blob.unknown",
            pointer=f"{pointer}/blob",
        )
    media_type = part.media_type or blob.media_type
    match part:
        case ImagePart():
            _see(media_type, blob.head, pointer)
            return msg.Image(part.blob, media_type)
        case FilePart():
            return msg.File(part.blob, media_type, part.name)


def _see(media_type: str, head: bytes, pointer: str) -> None:
    """Raise Invalid where no provider would take the picture."""
    pointer = f"{pointer}/media_type"
    if media_type not in BEGINNINGS:
        raise Invalid(f"{media_type} is no picture that models take: {', '.join(BEGINNINGS)}.", pointer=pointer)
    if not head.startswith(BEGINNINGS[media_type]):
        raise Invalid(f"The blob does not begin as {media_type} does; say what it is.", pointer=pointer)
