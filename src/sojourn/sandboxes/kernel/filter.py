"""The seccomp filter of every process in a sandbox, assembled here without libseccomp.

The keeper calls `assemble` once per machine and loads the result before each exec. The rule: what is not understood is
refused. An unknown architecture has no filter, and so no sandbox; a system call newer than this table does not exist.
"""

import platform
import struct

_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 0x00050000 | 1, 0x00050000 | 38, 0x00050000 | 97
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_NEWEST = 466  # removexattrat; later calls answer ENOSYS until somebody has read what they do
_CLONE_NAMESPACES = 0x7E020000  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_TYPES = (1, 2, 5)  # SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
_PROTOCOLS = (0, 1, 6, 17)  # any, ICMP (and PF_UNIX), TCP, UDP: nothing that loads a kernel module

# Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux 6.18.
# name -> (x86_64, aarch64); None where the architecture has no such call.
_DENIED: dict[str, tuple[int, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41), "mount": (165, 40),
    "umount2": (166, 39), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "open_tree": (428, 428), "move_mount": (429, 429), "mount_setattr": (442, 442), "statmount": (457, 457),
    "listmount": (458, 458), "lsm_get_self_attr": (459, 459), "lsm_set_self_attr": (460, 460),
    "lsm_list_modules": (461, 461), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "lookup_dcookie": (212, 18),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "memfd_secret": (447, 447),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "vmsplice": (278, 75), "move_pages": (279, 239), "migrate_pages": (256, 238), "mbind": (237, 235),
    "set_mempolicy": (238, 237), "get_mempolicy": (239, 236), "set_mempolicy_home_node": (450, 450),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "syslog": (103, 116), "nfsservctl": (180, 42),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58), "sched_setaffinity": (203, 122),
    "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None), "uselib": (134, None),
    "_sysctl": (156, None),
}  # fmt: skip
_INSPECTED = {
    "clone": (56, 220), "clone3": (435, 435), "ioctl": (16, 29), "personality": (135, 92), "socket": (41, 198),
    "socketpair": (53, 199), "memfd_create": (319, 279), "shmget": (29, 194),
}  # fmt: skip

Instruction = tuple[int, int, int, int]


def machine() -> str | None:
    """The architecture whose table fits this machine; None when there is none."""
    name = platform.machine()
    return name if name in _AUDIT else None


def assemble(architecture: str, *, counted_memory: bool) -> bytes:
    """The program for the seccomp call.

    Without `counted_memory` (no memory cgroup) the calls whose memory a poller cannot see answer ENOSYS.
    """
    column = list(_AUDIT).index(architecture)
    call = {name: numbers[column] for name, numbers in _INSPECTED.items()}
    program = [_load(_ARCHITECTURE), (_EQUAL, 1, 0, _AUDIT[architecture]), _return(_KILL), _load(_NUMBER)]
    if architecture == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32_BIT), _return(_KILL)]
    program += [(_AT_LEAST, 0, 1, _NEWEST + 1), _return(_ENOSYS)]
    for numbers in _DENIED.values():
        program += _on(numbers[column], [_return(_EPERM)])
    for name in ("clone3",) if counted_memory else ("clone3", "memfd_create", "shmget"):
        program += _on(call[name], [_return(_ENOSYS)])
    program += _on(call["clone"], [_load_argument(0), (_ANY_BIT, 0, 1, _CLONE_NAMESPACES), _return(_EPERM)])
    program += _on(call["ioctl"], [_load_argument(1), *_refuse(_TIOCSTI), *_refuse(_TIOCLINUX)])
    program += _on(call["personality"], [_load_argument(0), *_only((0, 0xFFFFFFFF), _EPERM)])
    for name in ("socket", "socketpair"):
        program += _on(call[name], _socket_rule())
    return b"".join(struct.pack("<HBBI", *line) for line in [*program, _return(_ALLOW)])


def _socket_rule() -> list[Instruction]:
    return [
        *(_load_argument(0), *_only(_FAMILIES, _EAFNOSUPPORT)),
        *(_load_argument(1), (_AND, 0, 0, 0xF), *_only(_TYPES, _EPERM)),
        *(_load_argument(2), *_only(_PROTOCOLS, _EPERM)),
    ]


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def _load_argument(index: int) -> Instruction:
    """The low 32 bits of an argument, which is all that the kernel reads of those inspected here."""
    return _load(_ARGUMENTS + 8 * index)


def _return(verdict: int) -> Instruction:
    return (_RETURN, 0, 0, verdict)


def _on(number: int | None, block: list[Instruction]) -> list[Instruction]:
    """Run `block` for one system call; the number is loaded again where the block can fall through."""
    if number is None:
        return []
    body = block if block[0][0] == _RETURN else [*block, _load(_NUMBER)]
    return [(_EQUAL, 0, len(body), number), *body]


def _refuse(value: int) -> list[Instruction]:
    return [(_EQUAL, 0, 1, value), _return(_EPERM)]


def _only(values: tuple[int, ...], verdict: int) -> list[Instruction]:
    """Go on when the loaded value is one of `values`, else return the verdict."""
    checks = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [*checks, _return(verdict)]
