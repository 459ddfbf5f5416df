"""The system calls that Python does not wrap, through ctypes.

Called by the keeper and by the workspace files of this room. The rule: every function here is one system call (or one
ioctl), raises OSError as the os module does, and decides nothing.
"""

import ctypes
import fcntl
import os
import socket
import struct
from array import array
from functools import cache

CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
EVERY_NAMESPACE_BUT_USER = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 1, 2, 4, 32, 4096, 16384, 1 << 19

RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = (
    1,
    4,
    24,
    36,
    38,
    47,
)
PR_CAP_AMBIENT_CLEAR_ALL = 4

_SIGCHLD = 17
_NS_GET_USERNS = 0xB701
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1

# Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_NUMBERS = {
    "x86_64": {"clone": 56, "capset": 126, "seccomp": 317},
    "aarch64": {"clone": 220, "capset": 91, "seccomp": 277},
}
_OPENAT2, _CLOSE_RANGE, _CLOSE_RANGE_CLOEXEC = 437, 436, 4  # calls above 423 have one number everywhere


@cache
def _libc() -> ctypes.PyDLL:
    """The C library, entered with the interpreter's lock held: a raw clone must come back in a whole interpreter."""
    return ctypes.PyDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(number: int, *arguments: object) -> int:
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc().syscall(ctypes.c_long(number), *longs), f"syscall {number}")


def _number(name: str) -> int:
    return _NUMBERS[os.uname().machine][name]


def openat2(path: bytes, flags: int, *, dir_fd: int, mode: int = 0, resolve: int) -> int:
    """Open `path` beneath `dir_fd`; the descriptor is closed on exec."""
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _syscall(_OPENAT2, dir_fd, ctypes.c_char_p(path), ctypes.c_char_p(how), len(how))


def clone_sibling() -> int:
    """Fork so that the child's parent is the caller's parent; 0 in the child."""
    return _syscall(_number("clone"), CLONE_PARENT | _SIGCHLD, 0, 0, 0, 0)


def setns(fd: int, kinds: int) -> None:
    _checked(_libc().setns(fd, kinds), "setns")


def unshare(kinds: int) -> None:
    _checked(_libc().unshare(kinds), "unshare")


def mount(source: str, target: str, *, kind: str = "none", flags: int = 0, options: str = "") -> None:
    _checked(
        _libc().mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode() or None),
        f"mount on {target}",
    )


def prctl(option: int, argument: int) -> None:
    zero = ctypes.c_ulong(0)
    _checked(_libc().prctl(option, ctypes.c_ulong(argument), zero, zero, zero), "prctl")


def owning_user_namespace(namespace_fd: int) -> int:
    """A descriptor of the user namespace that owns this namespace."""
    return fcntl.ioctl(namespace_fd, _NS_GET_USERNS)


def drop_capabilities() -> None:
    """Empty the bounding, ambient, effective, permitted and inheritable sets."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            break
    header = struct.pack("<II", _CAPABILITY_VERSION_3, 0)
    _syscall(_number("capset"), ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def load_filter(program: bytes) -> None:
    """Put the process behind a seccomp filter for good."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _syscall(_number("seccomp"), _SECCOMP_SET_MODE_FILTER, 0, ctypes.c_char_p(fprog))


def receive(door: socket.socket, size_bytes: int, *, descriptors_max: int) -> tuple[bytes, list[int]]:
    """A message and the descriptors that came with it, closed on exec (socket.recv_fds forgets its flags)."""
    fds = array("i")
    room = socket.CMSG_SPACE(descriptors_max * fds.itemsize)
    words, rights, _, _ = door.recvmsg(size_bytes, room, socket.MSG_CMSG_CLOEXEC)
    for _, _, data in rights:
        fds.frombytes(data)
    return words, list(fds)


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor from `first` on, so that the next exec closes it."""
    _syscall(_CLOSE_RANGE, first, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC)


def names_in(folder: int) -> list[str]:
    """The names in an open folder."""
    return os.listdir(folder)
