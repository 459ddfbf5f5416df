"""The file of a backup: what is not whole, or not ours, is refused before anything is done with it."""

import hashlib
import hmac
import io
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sojourn.errors import Invalid
from sojourn.store.backup import container
from sojourn.store.backup.container import Files, Footer, Header, Table, Writer

AT = datetime(2026, 1, 2, tzinfo=UTC)
ROOT = "0123456789abcdef"


def vouch(root: str, digest: bytes) -> bytes:
    return hmac.digest(root.encode(), digest, "sha256")


def written(*, roots: tuple[str, ...] = (ROOT,), rows: bytes = b"some rows") -> bytes:
    file = io.BytesIO()
    writer = Writer(file)
    writer.head(Header(release="1", host="here", made_at=AT, migrations=(("0001_scope", "00"),), roots=roots))
    writer.begin(Table("run", ("tenant", "id")))
    writer.add(rows)
    writer.begin(Table("empty", ("tenant",)))
    writer.begin(Files("acme", "ses_1", "sha256:00", 4))
    writer.add(b"file")
    footer = Footer(sequences={"s": 7}, size_bytes=writer.sizes, sessions=1, elsewhere={"there": 2})
    writer.end(footer, root=roots[0] if roots else None, vouch=vouch)
    return file.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def keep(data: bytes) -> Path:
        path = tmp_path / "backup"
        path.write_bytes(data)
        return path

    return keep


def refused(path: Path) -> str:
    with pytest.raises(Invalid) as refusal:
        container.check(path, vouch)
    return refusal.value.code


def test_what_is_written_is_read(file: Callable[[bytes], Path]) -> None:
    rows = bytes(range(256)) * 10_000
    path = file(written(rows=rows))
    checked = container.check(path, vouch)
    assert checked.vouched and checked.size_bytes == path.stat().st_size < len(rows)
    assert checked.footer.size_bytes == {"run": len(rows), "empty": 0, "files": 4}
    found = [(section, b"".join(pieces)) for section, pieces in container.sections(path)]
    assert [data for _, data in found] == [rows, b"", b"file"]
    assert found[0][0] == Table("run", ("tenant", "id")) and isinstance(found[2][0], Files)


def test_a_file_that_is_cut_anywhere_is_refused(file: Callable[[bytes], Path]) -> None:
    whole = written()
    for length in range(len(whole)):
        assert refused(file(whole[:length])) in ("backup.damaged", "backup.unreadable"), length
    assert refused(file(whole + b"x")) == refused(file(whole + whole[15:])) == "backup.damaged"


def test_a_file_with_any_byte_changed_is_refused(file: Callable[[bytes], Path]) -> None:
    whole = written()
    for at in range(len(whole)):
        edited = whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]
        assert refused(file(edited)).startswith("backup."), at


def test_an_edited_file_with_a_fresh_checksum_lacks_the_root_keys_code(file: Callable[[bytes], Path]) -> None:
    def sealed_anew(data: bytes, seal: container.Seal) -> bytes:
        end = data.rindex(b"z\0\0")
        record = container.msgspec.json.encode(seal)
        return data[:end] + b"z" + len(record).to_bytes(4) + record

    edited = written(rows=b"other rows")
    body = hashlib.sha256(edited[: edited.rindex(b"z\0\0")]).hexdigest()
    forged = vouch("fedcba9876543210", bytes.fromhex(body)).hex()
    for root, code in ((None, None), (ROOT, None), (ROOT, "00" * 32), ("fedcba9876543210", forged), (ROOT, forged)):
        data = sealed_anew(edited, container.Seal(sha256=body, root=root, code=code))
        assert refused(file(data)) == "backup.damaged", (root, code)
        assert not container.check(file(data), None).vouched, "who does not ask is not told that it is good"
    assert container.check(file(edited), vouch).vouched
    assert not container.check(file(written(roots=())), vouch).vouched, "there was no root key to vouch with"


def test_a_piece_that_grows_without_end_and_another_format_are_refused(file: Callable[[bytes], Path]) -> None:
    bomb = zlib.compress(bytes(container.PIECE_BYTES + 1))
    head = b"h" + (data := container.msgspec.json.encode({"format": 2})) and b"h" + len(data).to_bytes(4) + data
    assert refused(file(container.MAGIC + head)) == "backup.format"
    pieces = container._pieces(iter([(b"d", bomb), (b"f", b"")]), [])
    with pytest.raises(Invalid, match="too long"):
        list(pieces)
    assert refused(file(b"PGDMP" * 10)) == refused(file(b"")) == "backup.unreadable"
    assert refused(Path("/nowhere/at/all")) == "backup.unreadable"
