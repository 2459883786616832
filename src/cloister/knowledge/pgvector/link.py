"""The way to a PostgreSQL server: one connection inside the mesh's TLS, made anew when it is cut or old, and turns on it.

The driver is pg8000: it takes a TLS context, so the certificate's key never is a file, and the mesh is believed by the
manifest in force alone (broker/mesh_tls.py), which libpq cannot be told. Of a server's words nothing is handed on, since
they may quote what somebody wrote: only the five letters of its SQLSTATE.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from pg8000.exceptions import DatabaseError, Error  # type: ignore[import-untyped]
from pg8000.native import Connection  # type: ignore[import-untyped]

from cloister.errors import CloisterError, KnowledgeError, NetworkError, UsageError
from cloister.knowledge.store import Place

CONNECT: Final = 10.0
"""Seconds until a server has to be there."""
ANSWER: Final = 60.0
"""Seconds until it has to say something."""
LIFE: Final = 600.0
"""Seconds after which a connection is made anew, with the certificate of then."""
_STATEMENT_MS: Final = 50_000
_TODO: Final = "is the server running, and of the manifest in force? Then do it again: what is there already changes nothing"
_REASONS: Final = {
    "28000": "it does not let this workload in: look at its pg_hba.conf, and at the user's name",
    "3D000": "there is no such database",
    "42501": "this workload's user has to own the database, and an administrator to say CREATE EXTENSION vector in it",
    "0A000": "it has no pgvector: install it beside the server",
    "58P01": "it has no pgvector: install it beside the server",
    "42704": "its pgvector is older than 0.8",
    "53100": "its disk is full",
    "53300": "it has no more connections",
    "55P03": "another service changes documents there: do it again later",
    "57014": "it took too long",
}


class Link:
    """One connection, whose turns a lock gives. Threads may share it."""

    def __init__(
        self,
        place: Place,
        *,
        life: float = LIFE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = place
        self._life = life
        self._clock = clock
        self._lock = threading.Lock()
        self._held: tuple[Any, float] | None = None

    def close(self) -> None:
        with self._lock:
            self._leave()

    @contextmanager
    def turn(self) -> Iterator[Run]:
        """A transaction: what it did is there when it ends, or nothing of it is. Raises KnowledgeError, UsageError."""
        with self._lock:
            try:
                connection = self._begun()
                try:
                    yield connection.run
                    connection.run("COMMIT")
                except (DatabaseError, CloisterError):
                    self._undone(connection)
                    raise
                except BaseException:
                    self._leave()  # it may be in the middle of an answer; the server undoes what was not committed
                    raise
            except DatabaseError as error:
                raise _failed(error) from None
            except (Error, OSError) as error:
                raise KnowledgeError(
                    f"the documents' server does not answer: {_why(error)}", todo=_TODO
                ) from None
            except UnicodeEncodeError:
                raise UsageError("a text has halves of characters, which no text has") from None

    def _begun(self) -> Any:
        """A connection in whose transaction nothing was done. One that was cut meanwhile is made anew, once."""
        if self._held is not None and self._clock() - self._held[1] < self._life:
            with contextlib.suppress(Error, OSError):
                self._held[0].run("BEGIN")
                return self._held[0]
        self._leave()
        connection = self._connected()
        self._held = (connection, self._clock())
        connection.run("BEGIN")
        return connection

    def _connected(self) -> Any:
        place = self._place
        try:
            context = place.context()
        except CloisterError as error:
            raise KnowledgeError(
                f"the documents' server is not asked: {error.what}", todo=error.todo
            ) from None
        plain = socket.create_connection((place.host, place.port), CONNECT)
        try:
            plain.settimeout(ANSWER)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return Connection(
                place.user,
                host=place.name,  # what its certificate has to show
                database=place.database,
                ssl_context=context,
                sock=plain,
                startup_params={
                    "search_path": "cloister, public",
                    "statement_timeout": str(_STATEMENT_MS),
                    "lock_timeout": str(_STATEMENT_MS),
                    "idle_in_transaction_session_timeout": str(2 * _STATEMENT_MS),
                },
            )
        except BaseException:
            plain.close()
            raise

    def _undone(self, connection: Any) -> None:
        try:
            connection.run("ROLLBACK")
        except (Error, OSError):
            self._leave()

    def _leave(self) -> None:
        if self._held is not None:
            with contextlib.suppress(Error, OSError):
                self._held[0].close()
            self._held = None


Run = Callable[..., Any]
"""Runs a statement with its parameters, and gives its rows."""


def _why(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"it is not the workload that the rules name ({cause.verify_message})"
    if isinstance(cause, ssl.SSLError):
        return "its TLS is not the mesh's, or it refused this workload's certificate"
    if isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    return "it speaks no TLS" if "refuses SSL" in str(error) else "the line was cut"


def _failed(error: Exception) -> KnowledgeError:
    """Of the server's words the SQLSTATE alone."""
    told = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    state = str(told.get("C", ""))[:5]
    reason = _REASONS.get(state, f"SQLSTATE {state or 'unknown'}")
    return KnowledgeError(
        f"the documents' server refuses: {reason}",
        todo="look at the server's log",
    )


def reached(link: Link) -> None:
    """Raise :class:`NetworkError` where the server cannot be reached now."""
    try:
        with link.turn() as run:
            run("SELECT 1")
    except KnowledgeError as error:
        if "does not answer" in error.what:
            raise NetworkError(error.what, todo=error.todo) from None
        raise
