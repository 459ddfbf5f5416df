"""CI's second look at tests that failed among all the others: alone, three times in a row.

`.ci/run` has `make test` call it. The rule: it forgives chance and nothing else. More than three failures are no
chance, a test has to hold every time, and what held is named, so that somebody looks for the cause.
"""

import json
import subprocess
import sys
from pathlib import Path

FAILED = Path(".pytest_cache/v/cache/lastfailed")
MOST = 3
TIMES = 3
SOME_FAILED = 1
"""What pytest ends with where all tests ran and some failed."""


def main(status: int) -> int:
    """Look again at what failed in a test run that ended with `status`; give the status that counts."""
    failed = sorted(json.loads(FAILED.read_text())) if FAILED.exists() else []
    if status != SOME_FAILED or not 0 < len(failed) <= MOST:
        return status
    for _ in range(TIMES):
        if held := subprocess.run([sys.executable, "-m", "pytest", *failed], check=False).returncode:
            return held
    print(f"FLAKY, find out why: failed among all tests, held alone {TIMES} times: {', '.join(failed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
