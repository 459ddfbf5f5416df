"""A venv for each product under .venv-peers/, made from its pinned requirements and kept while they stay the same."""

import hashlib
import subprocess
import sys
from pathlib import Path

from bench.peers.adapter import ROOT
from bench.peers.peer import PeerFailed

REQUIREMENTS = Path(__file__).parent / "requirements"
INSTALL_S = 600


def python(name: str) -> Path:
    """Give the interpreter of a product's venv, which is made if need be. Raises PeerFailed."""
    if not (REQUIREMENTS / f"{name}.txt").exists():
        return Path(sys.executable)  # it lives with us
    home, locks = (
        ROOT / ".venv-peers" / name,
        sorted(REQUIREMENTS.glob(f"{name}*.txt"), key=lambda path: len(path.name)),
    )
    wanted = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()
    interpreter, stamp = home / "bin" / "python", home / "requirements.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
        _uv("venv", "--clear", "--python", sys.executable, str(home))
        for lock in locks:
            # What stands alone declares a newer Python than it needs; its dependencies are in the other file.
            alone = ("--no-deps", "--python-version", "3.12") if lock.stem.endswith("-alone") else ()
            _uv("pip", "install", "--python", str(interpreter), "--require-hashes", *alone, "-r", str(lock))
        stamp.write_text(wanted)
    return interpreter


def _uv(*arguments: str) -> None:
    command = [str(Path(sys.executable).parent / "uv"), "--no-config", "--quiet", *arguments]
    try:
        subprocess.run(command, check=True, timeout=INSTALL_S, stderr=subprocess.PIPE, text=True)
    except subprocess.CalledProcessError as error:
        raise PeerFailed(f"its venv cannot be made: {error.stderr[-1000:]}") from None
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"its venv was not made in {INSTALL_S} s") from None
