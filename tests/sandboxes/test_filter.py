"""The system call filter: read by a small interpreter for both architectures, and met by real programs."""

import json
import struct

import pytest
from tests.sandboxes.conftest import python

from sojourn.sandboxes.kernel import filter
from sojourn.sandboxes.sandbox import Sandbox

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL, EPERM, ENOSYS, EAFNOSUPPORT = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026, 0x00050061
NEWUSER, SIGCHLD = 0x10000000, 17


def judge(program: bytes, number: int, *arguments: int, audit: int) -> int:
    """What the kernel would answer: the four kinds of instruction that the filter uses."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, *(0,) * (6 - len(arguments)))
    at, loaded = 0, 0
    while True:
        code, yes, no, value = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        match code:
            case 0x20:
                loaded = struct.unpack_from("<I", data, value)[0]
            case 0x54:
                loaded &= value
            case 0x15:
                at += yes if loaded == value else no
            case 0x35:
                at += yes if loaded >= value else no
            case 0x45:
                at += yes if loaded & value else no
            case 0x06:
                return value


@pytest.mark.parametrize("name", AUDIT)
def test_the_tables_of_both_architectures_refuse_the_same(name: str) -> None:
    program = filter.assemble(name, counted_memory=True)
    column = list(AUDIT).index(name)
    numbers = {
        "ptrace": (101, 117), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "keyctl": (250, 219),
        "bpf": (321, 280), "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
        "process_vm_writev": (311, 271), "kcmp": (312, 272), "open_by_handle_at": (304, 265), "pidfd_getfd": (438, 438),
    }  # fmt: skip
    for pair in numbers.values():
        assert judge(program, pair[column], audit=AUDIT[name]) == EPERM
    read, write, openat = ((0, 63), (1, 64), (257, 56))
    for pair in (read, write, openat):
        assert judge(program, pair[column], audit=AUDIT[name]) == ALLOW
    clone, clone3, socket, ioctl = ((56, 220), (435, 435), (41, 198), (16, 29))
    assert judge(program, clone[column], SIGCHLD, audit=AUDIT[name]) == ALLOW
    assert judge(program, clone[column], NEWUSER | SIGCHLD, audit=AUDIT[name]) == EPERM
    assert judge(program, clone3[column], audit=AUDIT[name]) == ENOSYS
    assert judge(program, 467, audit=AUDIT[name]) == ENOSYS
    assert judge(program, socket[column], 2, 1 | 0o2000000, 6, audit=AUDIT[name]) == ALLOW
    assert judge(program, socket[column], 16, 3, 0, audit=AUDIT[name]) == EAFNOSUPPORT
    assert judge(program, socket[column], 2, 3, 1, audit=AUDIT[name]) == EPERM
    assert judge(program, socket[column], 2, 1, 132, audit=AUDIT[name]) == EPERM
    assert judge(program, ioctl[column], 0, 0x5412, audit=AUDIT[name]) == EPERM
    assert judge(program, ioctl[column], 0, 0x5401, audit=AUDIT[name]) == ALLOW
    for other in {*AUDIT.values(), 0x40000003} - {AUDIT[name]}:
        assert judge(program, read[column], audit=other) == KILL


def test_memory_that_a_poller_cannot_see_is_refused_where_only_a_poller_counts() -> None:
    memfd_create = 319
    for counted, verdict in ((True, ALLOW), (False, ENOSYS)):
        program = filter.assemble("x86_64", counted_memory=counted)
        assert judge(program, memfd_create, audit=AUDIT["x86_64"]) == verdict


def test_a_machine_without_a_table_has_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert filter.machine() is None


CALLS = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438,
    "process_madvise": 440, "unshare": 272, "setns": 308, "chroot": 161, "pivot_root": 155, "mount": 165,
    "umount2": 166, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "open_tree": 428, "move_mount": 429,
    "mount_setattr": 442, "name_to_handle_at": 303, "open_by_handle_at": 304, "fanotify_init": 300,
    "fanotify_mark": 301, "quotactl": 179, "swapon": 167, "swapoff": 168, "acct": 163, "keyctl": 250, "add_key": 248,
    "request_key": 249,
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "vmsplice": 278, "move_pages": 279, "migrate_pages": 256, "mbind": 237,
    "set_mempolicy": 238, "get_mempolicy": 239, "kexec_load": 246, "kexec_file_load": 320, "init_module": 175,
    "finit_module": 313, "delete_module": 176, "reboot": 169, "syslog": 103, "settimeofday": 164, "clock_settime": 227,
    "clock_adjtime": 305, "adjtimex": 159, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
    "modify_ldt": 154, "uselib": 134, "vhangup": 153, "memfd_secret": 447, "sched_setaffinity": 203, "listmount": 458,
}  # fmt: skip
ASK = """
import ctypes, errno, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def ask(number, *arguments):
    return 0 if libc.syscall(number, *arguments) >= 0 else ctypes.get_errno()
def door(*kind):
    try:
        socket.socket(*kind).close()
        return 0
    except OSError as error:
        return error.errno
print(json.dumps({
    "calls": {name: ask(number, 0, 0, 0, 0, 0) for name, number in %r.items()},
    "clone3": ask(435, 0, 0), "tomorrow": ask(470, 0),
    "clone": [ask(56, 1 << bit | 17, 0, 0, 0, 0) for bit in (17, 25, 26, 27, 28, 29, 30)],
    "personality": [ask(135, 0x0040000), ask(135, 0xFFFFFFFF)],
    "netlink": door(16, 3, 0), "packet": door(17, 3, 0), "vsock": door(40, 1, 0), "alg": door(38, 5, 0),
    "bluetooth": door(31, 3, 0), "raw": door(2, 3, 255), "raw6": door(10, 3, 58), "sctp": door(2, 1, 132),
    "tcp": door(2, 1, 0), "udp6": door(10, 2, 0), "unix": door(1, 1, 0),
}))
"""
MACHINE_CODE = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex(%r))
print("asking", flush=True)
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
"""
INT_80_GETPID = "b814000000cd80c3"  # mov eax, 20; int 0x80; ret
X32_GETPID = "b8270000400f05c3"  # mov eax, 0x40000000 + 39; syscall; ret
GETPID = "b8270000000f05c3"  # mov eax, 39; syscall; ret


if filter.machine() == "x86_64":  # the numbers and the machine code are its own

    class TestOnX8664:
        async def test_the_whole_deny_table_is_denied(self, sandbox: Sandbox) -> None:
            result = await python(sandbox, ASK % CALLS)
            said = json.loads(result.stdout)
            assert {name: code for name, code in said["calls"].items() if code != 1} == {}
            assert (said["clone3"], said["tomorrow"]) == (38, 38)
            assert set(said["clone"]) == {1}
            assert said["personality"] == [1, 0]
            assert {said[name] for name in ("netlink", "packet", "vsock", "alg", "bluetooth")} == {97}
            assert {said[name] for name in ("raw", "raw6", "sctp")} == {1}
            assert {said[name] for name in ("tcp", "udp6", "unix")} == {0}

        @pytest.mark.parametrize("code", [INT_80_GETPID, X32_GETPID])
        async def test_other_doors_to_the_kernel_kill(self, sandbox: Sandbox, code: str) -> None:
            result = await python(sandbox, MACHINE_CODE % code)
            assert (result.stdout, result.exit.signal) == ("asking\n", 31)

        async def test_the_machine_code_runs_where_it_may(self, sandbox: Sandbox) -> None:
            result = await python(sandbox, MACHINE_CODE % GETPID)
            assert result.stdout.split()[1].isdigit()


async def test_ordinary_programs_notice_nothing(sandbox: Sandbox) -> None:
    program = """
import concurrent.futures, multiprocessing, socket, sqlite3, subprocess, tempfile, threading
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
assert subprocess.run(["sh", "-c", "echo hi | cat"], capture_output=True).stdout == b"hi\\n"
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
assert socket.gethostbyname("localhost") == "127.0.0.1"
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
sqlite3.connect("data.db").execute("create table t(x)")
tempfile.NamedTemporaryFile().write(b"x")
print("fine")
"""
    result = await python(sandbox, program)
    assert (result.stdout, result.stderr) == ("fine\n", "")
