"""Where captured vectors and corpora of others live: outside the project, named by ``CLOISTER_SHARED``.

Where the folder is missing, tests that read it are skipped with one loud line at the end of the run
(conftest.py); with ``CI=true`` that is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

from real_parts import absent

_PROJECT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CLOISTER_SHARED") or _PROJECT / ".." / "shared").resolve()
MISSING = "is missing below"


def shared(relative: str) -> Path:
    """The path of one shared file or folder; skips the calling test (or module) if it is not there."""
    path = SHARED / relative
    if not path.exists():
        absent(f"{relative} {MISSING} {SHARED}: set CLOISTER_SHARED")
    return path


def vectors(relative: str) -> Path:
    """A file of captured evidence or protocol vectors."""
    return shared(f"vectors/{relative}")


def data(relative: str) -> Path:
    """A file of a corpus."""
    return shared(f"data/{relative}")
