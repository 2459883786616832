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
from collections.abc import Callable, Iterator
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

    def __init__(self, directory: Path, programs: Path | None = None) -> None:
        self.directory = directory
        self._programs = programs or require_postgres()
        self._user = None if os.geteuid() else _unprivileged()  # PostgreSQL refuses to be run by root
        directory.mkdir(parents=True)
        if self._user is not None:
            os.chown(directory, self._user, -1)
        self._run(
            *("initdb", "--auth=trust", f"--username={USER}", "--encoding=UTF8", "--no-locale", "--no-sync"),
            *("-D", str(directory / "data")),
        )

        self.port = 5432
        """Of the socket's name, and where it listens if it listens anywhere."""
        self._settings = {"listen_addresses": "''", "fsync": "off", "max_connections": "200"}

    def write(self, name: str, content: bytes) -> None:
        """A file among its data that only its user reads."""
        path = self.directory / "data" / name
        path.write_bytes(content)
        path.chmod(0o600)
        if self._user is not None:
            os.chown(path, self._user, -1)

    def listen(self, port: int, **settings: str) -> None:
        """Start again, with ``settings``, on a port of this machine."""
        self.stop()
        self.port = port
        self._settings |= {"listen_addresses": "127.0.0.1", **settings}
        self.start()

    def start(self) -> None:
        # A killed server loses nothing that the operating system has, so there is no sync to wait for.
        settings = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        options = f"-k {self.directory} -p {self.port} {settings}"
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
                port=self.port,
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

    def until_locked_out(self, database: str, *, seconds: float = 20) -> None:
        """Wait until somebody waits for an advisory lock."""
        deadline = time.monotonic() + seconds
        with self.connect(database) as connection:
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
            while not connection.execute(query).fetchone()[0]:  # type: ignore[index]
                assert time.monotonic() < deadline, "nobody waits"
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
def postgres_server(install: Callable[[Path], Path] | None = None) -> Iterator[Postgres]:
    """A running server. ``install`` puts another than the distribution's below a folder, and says where its programs are."""
    # A Unix socket's path has at most 107 bytes, so pytest's own directories are too deep.
    with tempfile.TemporaryDirectory(prefix="pg-") as root:
        Path(root).chmod(0o711)  # the server's user has to get through
        programs = require_postgres() if install is None else install(Path(root))
        server = Postgres(Path(root) / "server", programs)
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
