"""The file of a backup. `dump` writes it, `load` reads it, and the command line checks it.

    MAGIC, then records: one byte of kind, four of length, and so many bytes
      h    Header    once, in front
      s    Section   a table, or a session's files; what follows belongs to it
      d    a piece of it, compressed
      f    Footer    once, when all sections are there
      z    Seal      the SHA-256 of all bytes before, vouched for with the root key

The rules: a record is bounded, so a file of any size is read in little memory; and what is not exactly this is refused.
"""

import hashlib
import hmac
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from sojourn.errors import Invalid

MAGIC = b"sojourn backup\n"
FORMAT = 1
PIECE_BYTES, RECORD_BYTES_MAX = 1 << 20, 1 << 24
LEVEL = 1
"""Of the compression: higher ones cost more time than they save disk."""

Vouch = Callable[[str, bytes], bytes]
"""Makes the code for a digest with a root key, by its id."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a backup comes from, and what it needs."""

    format: int = FORMAT
    release: str
    host: str
    made_at: datetime
    migrations: tuple[tuple[str, str], ...] = ()
    """Name and SHA-256 of each, in order."""
    roots: tuple[str, ...] = ()
    """The root keys that its secrets are under, by id: the current one first."""


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="table"):
    """A table's rows follow, as COPY writes them in binary."""

    name: str
    columns: tuple[str, ...]


class Files(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="files"):
    """A session's files follow, as an archive."""

    tenant: str
    session: str
    digest: str
    size_bytes: int


Section = Table | Files


class Footer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What there was, once all of it is written."""

    sequences: dict[str, int]
    size_bytes: dict[str, int]
    """Of each table, before compression; that of `files` is of sessions' files."""
    sessions: int
    """Whose files were in sandboxes and are here."""
    elsewhere: dict[str, int]
    """Sessions whose files are not here, by the host that has them."""


class Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What shows that nothing is missing or changed."""

    sha256: str
    root: str | None = None
    code: str | None = None


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was read to its end."""

    header: Header
    footer: Footer
    vouched: bool
    """Whether the root key says that an installation of ours wrote it."""
    size_bytes: int


class Writer:
    """Writes a file from its beginning to its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._piece = bytearray()
        self._name, self.sizes = "", dict[str, int]()
        self._out(MAGIC)

    def head(self, header: Header) -> None:
        self._record(b"h", msgspec.json.encode(header))

    def begin(self, section: Section) -> None:
        """Begin a section, and end the one before."""
        self._flush()
        self._name = section.name if isinstance(section, Table) else "files"
        self.sizes.setdefault(self._name, 0)
        self._record(b"s", msgspec.json.encode(section))

    def add(self, data: bytes) -> None:
        """Add to the section."""
        self.sizes[self._name] += len(data)
        self._piece += data
        while len(self._piece) >= PIECE_BYTES:
            self._record(b"d", zlib.compress(self._piece[:PIECE_BYTES], LEVEL))
            del self._piece[:PIECE_BYTES]

    def end(self, footer: Footer, *, root: str | None, vouch: Vouch) -> None:
        """Write what there was, and seal it with a root key where there is one."""
        self._flush()
        self._record(b"f", msgspec.json.encode(footer))
        digest = self._digest.digest()
        code = vouch(root, digest).hex() if root else None
        self._record(b"z", msgspec.json.encode(Seal(sha256=digest.hex(), root=root, code=code)))

    def _flush(self) -> None:
        if self._piece:
            self._record(b"d", zlib.compress(self._piece, LEVEL))
            self._piece.clear()

    def _record(self, kind: bytes, data: bytes) -> None:
        self._out(kind + len(data).to_bytes(4) + data)

    def _out(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


def check(path: Path, vouch: Vouch | None) -> Checked:
    """Read a file to its end. Raises Invalid where it is none of ours, was changed, or lacks something.

    Without `vouch` it is not asked who wrote it.
    """
    with _opened(path) as file:
        digest, before = hashlib.sha256(MAGIC), b""
        header = footer = sealed = None
        for kind, data in _records(file):
            if sealed is not None or (header is None) != (kind == b"h") or (footer is not None and kind != b"z"):
                raise _damaged("its parts are not in order")
            if kind == b"h":
                header = _header(data)
            elif kind == b"f":
                footer = _decoded(data, Footer)
            elif kind == b"z":
                sealed, before = _decoded(data, Seal), digest.digest()
            digest.update(kind + len(data).to_bytes(4) + data)
        if header is None or footer is None or sealed is None:
            raise _damaged("its end is missing")
        if not hmac.compare_digest(sealed.sha256, before.hex()):
            raise _damaged("its checksum does not fit")
        vouched = _vouched(header, sealed, before, vouch)
        return Checked(header=header, footer=footer, vouched=vouched, size_bytes=file.tell())


def head(path: Path) -> Header:
    """What a file says of itself, before it is read. Raises Invalid."""
    with _opened(path) as file:
        kind, data = next(_records(file), (b"", b""))
        if kind != b"h":
            raise _damaged("it has no beginning")
        return _header(data)


def sections(path: Path) -> Iterator[tuple[Section, Iterator[bytes]]]:
    """The sections of a file that was checked, each with its pieces, which are read before the next one."""
    with _opened(path) as file:
        records = _records(file)
        kind, data = next(records)
        while kind != b"f":
            if kind != b"s":
                kind, data = next(records)
                continue
            after: list[tuple[bytes, bytes]] = []
            yield _decoded(data, Section), _pieces(records, after)
            kind, data = after[0]


def _pieces(records: Iterator[tuple[bytes, bytes]], after: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The pieces of a section; the record that follows them is put into `after`."""
    for kind, data in records:
        if kind != b"d":
            after.append((kind, data))
            return
        reader = zlib.decompressobj()
        piece = reader.decompress(data, PIECE_BYTES)
        if not reader.eof:
            raise _damaged("a piece is too long")
        yield piece


def _opened(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}.", code="backup.unreadable") from None
    if file.read(len(MAGIC)) != MAGIC:
        file.close()
        raise Invalid(f"{path} is no backup of Sojourn.", code="backup.unreadable")
    return file


def _records(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    while front := file.read(5):
        length = int.from_bytes(front[1:])
        if len(front) != 5 or length > RECORD_BYTES_MAX:
            raise _damaged("a record is cut or too long")
        data = file.read(length)
        if len(data) != length:
            raise _damaged("it ends too early")
        yield front[:1], data


def _header(data: bytes) -> Header:
    """What a file says of itself. Raises Invalid for another format."""
    try:
        form = msgspec.json.decode(data, type=dict[str, Any]).get("format")
    except msgspec.DecodeError:
        raise _damaged("its beginning cannot be read") from None
    if form != FORMAT:
        raise Invalid(f"The backup has format {form}; this release reads {FORMAT}.", code="backup.format")
    header: Header = _decoded(data, Header)
    return header


def _decoded(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError:
        raise _damaged("a part of it cannot be read") from None


def _vouched(header: Header, sealed: Seal, digest: bytes, vouch: Vouch | None) -> bool:
    """Whether the root key fits the file. Raises Invalid where it does not, or where the file should have one."""
    if vouch is None or not header.roots:
        return False
    if sealed.root != header.roots[0] or sealed.code is None:
        raise _damaged("the root key's code is missing")
    if not hmac.compare_digest(vouch(sealed.root, digest).hex(), sealed.code):
        raise _damaged("the root key's code does not fit: somebody changed it")
    return True


def _damaged(why: str) -> Invalid:
    return Invalid(f"The backup is damaged, and nothing was restored: {why}. Take another one.", code="backup.damaged")
