"""The command line as an owner types it, in this process: outcome, exit code, one line of error, no secrets."""

from __future__ import annotations

import contextlib
import hashlib
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.cli import main
from cloister.sealing.key_file import KEK_KIND, SIGNING_KIND, write_secret
from sealing_samples import KEK, OTHER_KEK

CLOISTER = (sys.executable, "-c", "from cloister.cli import main; main()")
OWNER_SEED = hashlib.sha256(b"the owner's seed").digest()


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


def run(*arguments: object) -> Outcome:
    """Run a command in this process; its standard output as bytes."""
    raw, err = io.BytesIO(), io.StringIO()
    out = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
    with pytest.raises(SystemExit) as left, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main([str(argument) for argument in arguments])
    out.flush()
    return Outcome(int(left.value.code or 0), raw.getvalue(), err.getvalue())


def start(*arguments: object, place: Path, **options: object) -> subprocess.Popen[bytes]:
    """Run a command in a process of its own."""
    return subprocess.Popen([*CLOISTER, *map(str, arguments)], cwd=place, **options)  # type: ignore[call-overload,no-any-return]


def key_files(place: Path) -> None:
    """``k`` and ``k2`` hold the two keys of the samples, ``s`` the owner's signing key."""
    write_secret(place / "k", KEK_KIND, KEK)
    write_secret(place / "k2", KEK_KIND, OTHER_KEK)
    write_secret(place / "s", SIGNING_KIND, OWNER_SEED)
