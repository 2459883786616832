"""A real PostgreSQL for tests: initdb and pg_ctl of the distribution, as a user without privileges, on a Unix socket.

Where PostgreSQL is missing, tests that need it are skipped; with ``CI=true`` that is a failure. Each server is a
process with data of its own below a short temporary path, and listens on no port.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from real_parts import absent

ROOT = Path("/usr/lib/postgresql")
"""Where Debian keeps the programs of each version."""
USER = "cloister"


def require_postgres() -> Path:
    """The directory of the newest version's programs; skip the calling test (or module) where there is none."""
    found = sorted(
        ROOT.glob("*/bin/initdb"), key=lambda path: [int(part) for part in path.parts[4].split(".")]
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        absent("initdb not found: install postgresql")
    return Path(on_path).resolve().parent


class Postgres:
    """One server. ``start`` and ``stop`` are its power."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._programs = require_postgres()
        self._user = None if os.geteuid() else _unprivileged()  # PostgreSQL refuses to be run by root
        directory.mkdir(parents=True)
        if self._user is not None:
            os.chown(directory, self._user, -1)
        self._run(
            *("initdb", "--auth=trust", f"--username={USER}", "--encoding=UTF8", "--no-locale", "--no-sync"),
            *("-D", str(directory / "data")),
        )

    def start(self) -> None:
        # A killed server loses nothing that the operating system has, so there is no sync to wait for.
        options = f"-c listen_addresses='' -k {self.directory} -c fsync=off -c max_connections=200"
        self._run(
            *("pg_ctl", "start", "-w", "-t", "60", "-D", str(self.directory / "data")),
            *("-l", str(self.directory / "log"), "-o", options),
        )

    def stop(self, how: str = "immediate") -> None:
        """``immediate`` is a crash: no checkpoint, every connection cut."""
        self._run("pg_ctl", "stop", "-w", "-t", "60", "-D", str(self.directory / "data"), "-m", how)

    def create(self, database: str) -> str:
        """A new database; the URL that `--database` takes."""
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {database}")  # type: ignore[call-overload]
        return self.url(database)

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={self.directory}"

    @contextlib.contextmanager
    def connect(self, database: str, *, autocommit: bool = True) -> Iterator[psycopg.Connection[Any]]:
        """A connection behind the broker's back."""
        with contextlib.closing(
            psycopg.connect(
                host=str(self.directory),
                user=USER,
                dbname=database,
                autocommit=autocommit,
                connect_timeout=10,
            )
        ) as connection:
            yield connection

    def until_blocked(self, database: str, table: str, *, seconds: float = 20) -> None:
        """Wait until somebody waits for a lock on ``table``."""
        query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
        deadline = time.monotonic() + seconds
        with self.connect(database) as connection:
            while not connection.execute(query, [table]).fetchone()[0]:  # type: ignore[index]
                assert time.monotonic() < deadline, f"nobody waits for {table}"
                time.sleep(0.02)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self.directory,
            user=self._user,
            # pg_ctl's server keeps what it inherits open, so nothing may wait for the end of a pipe.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{program} ended with {done.returncode}: see {self.directory}/log"


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A running server."""
    require_postgres()
    # A Unix socket's path has at most 107 bytes, so pytest's own directories are too deep.
    with tempfile.TemporaryDirectory(prefix="pg-") as root:
        Path(root).chmod(0o711)  # the server's user has to get through
        server = Postgres(Path(root) / "server")
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _unprivileged() -> int:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid
    raise AssertionError("there is no user to run PostgreSQL as")
