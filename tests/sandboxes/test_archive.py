"""Archives that mean harm: a restore refuses them whole and leaves nothing behind."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from tests.sandboxes.conftest import SMALL, run

from sojourn.errors import Invalid, OverLimit, SojournError
from sojourn.sandboxes import archive
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.sandbox import Limits, Snapshot, Spec

LIMITS = Limits(disk_bytes=1 << 20, inodes=50)


def entry(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type = kind
    data = more.pop("data", b"")
    member.size = len(data)
    for key, value in more.items():
        setattr(member, key, value)
    return member, data


def snapshot(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> Snapshot:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:", format=format) as made:
        for member, data in entries:
            made.addfile(member, io.BytesIO(data))
    return signed(held.getvalue())


def signed(data: bytes) -> Snapshot:
    return Snapshot(digest="sha256:" + hashlib.sha256(data).hexdigest(), data=data)


SYM, LNK, DIR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
HOSTILE = {
    "above": snapshot(entry("../out", data=b"x")),
    "absolute": snapshot(entry("/tmp/out", data=b"x")),
    "above-inside": snapshot(entry("a", DIR), entry("a/../../out", data=b"x")),
    "dot": snapshot(entry("./a", data=b"x")),
    "through-a-link": snapshot(entry("l", SYM, linkname="/tmp"), entry("l/out", data=b"x")),
    "through-a-link-to-above": snapshot(entry("l", SYM, linkname=".."), entry("l/out", data=b"x")),
    "over-a-link": snapshot(entry("l", SYM, linkname="/tmp/out"), entry("l", data=b"x")),
    "hard-link-out": snapshot(entry("h", LNK, linkname="/etc/passwd")),
    "hard-link-above": snapshot(entry("h", LNK, linkname="../../etc/passwd")),
    "hard-link-to-link": snapshot(entry("l", SYM, linkname="/etc/passwd"), entry("h", LNK, linkname="l")),
    "character-device": snapshot(entry("d", tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "block-device": snapshot(entry("d", tarfile.BLKTYPE, devmajor=8, devminor=0)),
    "pipe": snapshot(entry("p", tarfile.FIFOTYPE)),
    "twice": snapshot(entry("a", data=b"1"), entry("a", data=b"2")),
    "file-as-folder": snapshot(entry("a", data=b"1"), entry("a/b", data=b"2")),
    "nul": snapshot(entry("a", data=b"x", pax_headers={"path": "a\0b"}), format=tarfile.PAX_FORMAT),
    "deep": snapshot(entry("/".join("d" * 300), data=b"x")),
    "long-name": snapshot(entry("x" * 300, data=b"x")),
    "pax-path": snapshot(entry("a", data=b"x", pax_headers={"path": "../out"}), format=tarfile.PAX_FORMAT),
    "sparse": snapshot(
        entry(
            "a",
            data=b"x",
            pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 12},
        ),
        format=tarfile.PAX_FORMAT,
    ),
    "torn": signed(snapshot(entry("a", data=b"x" * 5000)).data[:2000]),
    "garbage": signed(os.urandom(4096)),
    "other-digest": Snapshot(digest="sha256:" + "0" * 64, data=snapshot(entry("a")).data),
}
LARGE = {
    "pax-size": snapshot(entry("a", data=b"x", pax_headers={"size": "99999999999"}), format=tarfile.PAX_FORMAT),
    "large": snapshot(entry("a", data=bytes(2 << 20))),
    "many": snapshot(*(entry(f"f{n}") for n in range(60))),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    return inner


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(Invalid):
        archive.unpack(HOSTILE[name], folder, LIMITS)
    outside = [
        path for path in folder.parents[1].rglob("*") if folder not in path.parents and path.name not in ("a", "b")
    ]
    assert outside == []
    assert not Path("/tmp/out").exists()


@pytest.mark.parametrize("name", LARGE)
def test_an_archive_beyond_the_limits_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(OverLimit):
        archive.unpack(LARGE[name], folder, LIMITS)


def test_what_was_packed_unpacks_to_the_same(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d/e").mkdir(parents=True)
    (source / "d/file").write_bytes(b"text")
    (source / "d/tool").write_bytes(b"#!")
    (source / "d/tool").chmod(0o4751)
    os.link(source / "d/file", source / "z")
    (source / "link").symlink_to("/absolute/anywhere")
    (source / "ü\udcff".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")).touch()
    os.mkfifo(source / "pipe")
    os.utime(source / "d", (5, 1_000_000_000))
    (source / "d/e").chmod(0o500)
    first = archive.pack(source, LIMITS)
    archive.unpack(first, folder, LIMITS)
    assert archive.pack(folder, LIMITS) == first
    assert (folder / "d/tool").stat().st_mode & 0o7777 == 0o751
    assert (folder / "z").stat().st_ino == (folder / "d/file").stat().st_ino
    assert (folder / "d").stat().st_mtime == 1_000_000_000
    assert not (folder / "pipe").exists()
    (source / "d/e").chmod(0o700)
    (folder / "d/e").chmod(0o700)


def test_holes_are_counted_as_if_they_were_filled(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(100 << 30)
    with pytest.raises(OverLimit):
        archive.pack(tmp_path, LIMITS)


async def test_a_refused_restore_leaves_no_session(provider: BwrapProvider) -> None:
    session_id = f"ses_{uuid4().hex}"
    for hostile in (HOSTILE["above"], HOSTILE["other-digest"], LARGE["large"]):
        with pytest.raises(SojournError):
            await provider.restore(session_id, hostile, Spec(limits=LIMITS))
    assert await provider.attach(session_id) is None
    assert provider.files(session_id) is None


async def test_suspended_here_restored_in_another_data_folder(
    provider: BwrapProvider, folder_of: Callable[[], Path]
) -> None:
    here = await provider.create(f"ses_{uuid4().hex}", SMALL)
    await run(here, "sh", "-c", "mkdir d; echo state > d/file")
    snapshot = await here.suspend()
    await here.destroy()
    elsewhere = BwrapProvider(folder_of(), idle_s=0.5)
    there = await elsewhere.restore(here.session_id, snapshot, SMALL)
    assert (await run(there, "sh", "-c", "cat d/file; echo more >> d/file; id -u")).stdout == "state\n1000\n"
    await there.destroy()
    await elsewhere.close()
