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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedRWPair
from typing import Any, Final, Literal

from pg8000.exceptions import DatabaseError, Error, InterfaceError  # type: ignore[import-untyped]
from pg8000.native import Connection  # type: ignore[import-untyped]

from cloister.errors import CloisterError, KnowledgeError, NetworkError, UsageError
from cloister.knowledge.store import Place

CONNECT: Final = 10.0
"""Seconds until a server has to be there."""
ANSWER: Final = 60.0
"""Seconds until it has to say something, and until a turn has to come."""
_STATEMENT_MS: Final = 50_000
_LOCK_MS: Final = 40_000
_WANTS_TLS: Final = b"\0\0\0\x08\x04\xd2\x16\x2f"
"""SSLRequest of PostgreSQL's protocol: a length, and 80877103."""
_NO_TLS: Final = "it speaks no TLS"
_ADVICE: Final = (
    "is the server running, and of the manifest in force? Then do it again: what is there changes nothing"
)
_REASONS: Final = {
    "28000": "it does not let this workload in: look at its pg_hba.conf, and at the user's name",
    "28P01": "it asks for a password: its pg_hba.conf has to say cert",
    "3D000": "there is no such database",
    "42501": "this workload's user has to own the database, and an administrator to say CREATE EXTENSION vector in it",
    "0A000": "it has no pgvector: install it beside the server",
    "58P01": "it has no pgvector: install it beside the server",
    "53100": "its disk is full",
    "53200": "it is out of memory: raise its max_locks_per_transaction, if there are very many collections",
    "53300": "it has no more connections",
    "55P03": "another service changes documents there: do it again later",
    "57014": "it took too long",
}
Run = Callable[..., Any]
"""Runs a statement with its parameters, and gives its rows."""


class Link:
    """One connection, whose turns a lock gives. Threads may share it."""

    def __init__(self, place: Place, *, patience: float = ANSWER) -> None:
        self._place = place
        self._patience = patience
        self._lock = threading.Lock()
        self._held: tuple[Connection, ssl.SSLContext] | None = None
        self._closed = False

    def close(self) -> None:
        """No more turns. One that is under way ends by itself, and its connection with it."""
        self._closed = True
        if self._lock.acquire(timeout=1):
            try:
                self._leave()
            finally:
                self._lock.release()

    @contextmanager
    def turn(self) -> Iterator[Run]:
        """A transaction: what it did is there when it ends, or nothing of it is. Raises KnowledgeError, UsageError."""
        context = self._context()
        if not self._lock.acquire(timeout=self._patience):
            raise KnowledgeError("the documents' server is busy", todo="do it again later")
        try:
            run = self._begun(context)
            try:
                yield run
                run("COMMIT")
            except (DatabaseError, CloisterError):
                self._undone(run)
                raise
            except BaseException:
                self._leave()  # it may be in the middle of an answer; the server undoes what was not committed
                raise
        except DatabaseError as error:
            raise _failed(error) from None
        except (Error, OSError) as error:
            raise KnowledgeError(
                f"the documents' server does not answer: {_why(error)}", todo=_ADVICE
            ) from None
        except UnicodeEncodeError:
            raise UsageError("a text has halves of characters, which no text has") from None
        finally:
            if self._closed:
                self._leave()
            self._lock.release()

    def _context(self) -> ssl.SSLContext:
        """Of now: another one than a connection was made with means another certificate, or another manifest."""
        try:
            return self._place.context()
        except CloisterError as error:
            raise KnowledgeError(
                f"the documents' server is not asked: {error.what}", todo=error.todo
            ) from None

    def _begun(self, context: ssl.SSLContext) -> Run:
        """In whose transaction nothing was done. A connection that was cut meanwhile is made anew, once."""
        if self._closed:
            raise KnowledgeError("the documents' server was left", todo="open it again")
        if self._held is not None and self._held[1] is context:
            run = _guarded(self._held[0])
            with contextlib.suppress(Error, OSError):
                run("BEGIN")
                return run
        self._leave()
        connection = self._connected(context)
        self._held = (connection, context)
        run = _guarded(connection)
        run("BEGIN")
        return run

    def _connected(self, context: ssl.SSLContext) -> Connection:
        place = self._place
        line = _guard(_secured, place, context)
        try:
            return _guard(
                Connection,
                place.user,
                database=place.database,
                password="",
                ssl_context=False,
                sock=_Line(line),
                startup_params={
                    "search_path": "cloister, public",
                    "statement_timeout": str(_STATEMENT_MS),
                    "lock_timeout": str(_LOCK_MS),
                    "idle_in_transaction_session_timeout": str(2 * _STATEMENT_MS),
                },
            )
        except BaseException:
            line.close()
            raise

    def _undone(self, run: Run) -> None:
        try:
            run("ROLLBACK")
        except (Error, OSError):
            self._leave()

    def _leave(self) -> None:
        if self._held is not None:
            with contextlib.suppress(Error, OSError):
                self._held[0].close()
            self._held = None


class _Line:
    """What the driver speaks through: it ends when it is left, whatever could not be sent any more."""

    def __init__(self, secured: ssl.SSLSocket) -> None:
        self._secured = secured
        self._file: BufferedRWPair[Any, Any] | None = None

    def makefile(self, *, mode: Literal["rwb"]) -> BufferedRWPair[Any, Any]:
        self._file = self._secured.makefile(mode=mode)
        return self._file

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._secured.close()


def _secured(place: Place, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A line to the workload of that name, to which nothing was said but that TLS is wanted."""
    plain = socket.create_connection((place.host, place.port), CONNECT)
    try:
        plain.settimeout(ANSWER)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.sendall(_WANTS_TLS)
        if plain.recv(1) != b"S":
            raise InterfaceError(_NO_TLS)
        return context.wrap_socket(plain, server_hostname=place.name)
    except BaseException:
        plain.close()
        raise


def texts(values: Iterable[str]) -> str:
    """An array of texts as PostgreSQL reads it. pg8000 would write the word null so that it is read as no text at all."""
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"


def reached(link: Link) -> None:
    """Raise :class:`NetworkError` where the server cannot be reached now."""
    try:
        with link.turn() as run:
            run("SELECT 1")
    except KnowledgeError as error:
        if "does not answer" in error.what:
            raise NetworkError(error.what, todo=error.todo) from None
        raise


def _guarded(connection: Connection) -> Run:
    def run(statement: str, **parameters: Any) -> Any:
        return _guard(connection.run, statement, **parameters)

    return run


def _guard(work: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What ``work`` gives. Whatever the driver raises for an answer that it does not understand is an error of the line."""
    try:
        return work(*given, **named)
    except (Error, OSError, UnicodeEncodeError):
        raise
    except Exception as error:
        raise InterfaceError(f"{type(error).__name__}") from None


def _why(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"it is not the workload that the rules name ({cause.verify_message})"
    if isinstance(cause, ssl.SSLError):
        return "its TLS is not the mesh's, or it refused this workload's certificate"
    if isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    return _NO_TLS if str(error) == _NO_TLS else "the line was cut"


def _failed(error: Exception) -> KnowledgeError:
    """Of the server's words the SQLSTATE alone."""
    told = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    state = str(told.get("C", ""))[:5]
    reason = _REASONS.get(state, f"SQLSTATE {state or 'unknown'}")
    return KnowledgeError(f"the documents' server refuses: {reason}", todo="look at the server's log")
