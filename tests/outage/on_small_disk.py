"""Runs a command that sees a small disk of its own in place of a folder: `on_small_disk.py FOLDER BYTES COMMAND ...`

A script of its own, because what it does to itself cannot be undone. The disk is a tmpfs in a mount namespace; who may
not make one as he is makes a user namespace first, in which he stays who he is. Where a machine allows neither it ends
with code 125 and says so.
"""

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
MS_REC, MS_PRIVATE = 0x4000, 0x4_0000
IMPOSSIBLE = 125
libc = ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def enter() -> None:
    """Go into a mount namespace of our own."""
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNS) != 0:
        must(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    must(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount --make-rprivate /")


def main(folder: str, size_bytes: str, *command: str) -> None:
    try:
        enter()
        options = f"size={size_bytes},mode=0700".encode()
        must(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options), "mount -t tmpfs")
    except OSError as error:
        print(
            f"This machine allows no tmpfs of our own ({error}): run the tests where user namespaces work, or as root."
        )
        sys.exit(IMPOSSIBLE)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
