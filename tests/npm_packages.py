"""Other people's JavaScript packages below ``build/npm``, for the tests in Node and in a browser.

They are installed by their committed lock file, without running anybody's install scripts. Where they cannot be,
the calling test is skipped with the reason; with ``CI=true`` that is a failure.
"""

from __future__ import annotations

import fcntl
import filecmp
import shutil
import subprocess
from pathlib import Path

from real_parts import absent

SOURCES = Path(__file__).parent / "contracts" / "node"
INSTALLED = Path(__file__).parents[1] / "build" / "npm"
FILES = ("package.json", "package-lock.json", "ohttp.mjs", "peer.mjs")


def install() -> None:
    """Bring ``build/npm`` up to date; test processes that run beside each other wait for the first."""
    npm = shutil.which("npm")
    if npm is None:
        absent("NOT RUN: the channel against npm packages; install npm")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with (INSTALLED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        changed = [name for name in FILES if not _same(SOURCES / name, INSTALLED / name)]
        for name in changed:
            shutil.copyfile(SOURCES / name, INSTALLED / name)
        if "package-lock.json" not in changed and (INSTALLED / "installed").exists():
            return
        (INSTALLED / "installed").unlink(missing_ok=True)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True, timeout=180, check=True)
        except subprocess.TimeoutExpired:
            absent("NOT RUN: the channel against npm packages; npm ci took more than three minutes")
        except subprocess.CalledProcessError as error:
            absent(f"NOT RUN: the channel against npm packages; npm ci failed: {error.stderr.strip()[:300]}")
        (INSTALLED / "installed").touch()


def _same(one: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(one, other, shallow=False)
