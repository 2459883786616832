"""KMIP 1.4 requests over mutual TLS, one at a time on each connection, every exchange within its time.

The messages are PyKMIP's; its client is not used: it compares no host name, reads configuration files of its own, has no
bound on an answer and can write keys to a log. What a server says in words is dropped, its reasons are kept.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cloister.errors import KeystoreError, KeystoreUnavailable, UsageError
from cloister.sealing.descriptors import read_private

MAX_ANSWER: Final = 1 << 18
MAX_KEY_FILE: Final = 1 << 14
MAX_IDLE: Final = 8
MAX_ADDRESSES: Final = 8
TIMEOUT: Final = 10.0
HEADER_SIZE: Final = 8
_CLOSED: Final = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
RESPONSE: Final = bytes.fromhex("42007b01")
"""The tag of a response message, and that it is a structure."""


class Refused(Exception):
    """The server answered, and refuses; ``reason`` is one of KMIP's names."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Broken(Exception):
    """``closed``: the server has closed the connection, or whoever carries it."""

    def __init__(self, why: str, *, closed: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.closed = closed


def tls_context(*, certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """TLS 1.2 or later, with our certificate, towards a server certified by ``ca`` alone, under the name that we ask for."""
    read_private(key, what="the key of the KMIP client certificate", limit=MAX_KEY_FILE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path, load in ((ca, context.load_verify_locations), (certificate, None)):
        try:
            if load is not None:
                load(path)
            else:
                context.load_cert_chain(certificate, key, password=b"")  # never asks on a terminal
        except (OSError, ValueError):  # also ssl.SSLError
            raise UsageError(
                f"{path} is not usable for TLS",
                todo="name PEM files: a certificate, its key without passphrase, a CA",
            ) from None
    return context


class KmipWire:
    """Connections to one server."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, *, timeout: float = TIMEOUT) -> None:
        _import_kmip()
        self.host = host
        self.port = port
        self._context = context
        self._timeout = timeout
        self._idle: list[ssl.SSLSocket] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"KmipWire({self.host!r}, {self.port})"

    def close(self) -> None:
        """Close what is idle; the next request connects anew."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            _close(connection)

    def ask(self, operation: Any, payload: Any) -> Any:
        """The payload of the answer. Asked again once, if the connection was an idle one that the server had closed.

        Raises :class:`Refused`, :class:`~cloister.errors.KeystoreUnavailable` and, when server and client do not trust
        each other, :class:`~cloister.errors.KeystoreError`.
        """
        request = _encode(operation, payload)
        connection = self._reuse()
        try:
            if connection is not None:
                try:
                    return self._exchange(connection, operation, request)
                except _Broken as broken:
                    self.close()  # the others are no better
                    if not broken.closed:  # it may be done yet
                        raise
            return self._exchange(self._connect(), operation, request)
        except _Broken as broken:
            raise KeystoreUnavailable(
                f"the KMIP server {self.host}:{self.port} does not answer ({broken.why})",
                todo="see that it runs, then ask again",
            ) from None

    def _reuse(self) -> ssl.SSLSocket | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _connect(self) -> ssl.SSLSocket:
        deadline = time.monotonic() + self._timeout
        failed: KeystoreError | _Broken = _Broken("it has no address")
        try:
            addresses = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise self._failed(error) from None
        for family, _, _, _, address in addresses[:MAX_ADDRESSES]:
            # Wrapped before it connects: whatever fails on the way, there is one socket, and it is closed.
            connection = self._context.wrap_socket(socket.socket(family), server_hostname=self.host)
            try:
                connection.settimeout(_left(deadline))
                connection.connect(address)  # and the handshake
            except OSError as error:
                _close(connection)
                failed = self._failed(error)
            except BaseException:
                _close(connection)
                raise
            else:
                return connection
        raise failed

    def _exchange(self, connection: ssl.SSLSocket, operation: Any, request: bytes) -> Any:
        deadline = time.monotonic() + self._timeout
        try:
            connection.settimeout(_left(deadline))
            connection.sendall(request)
            header = _receive(connection, HEADER_SIZE, deadline)
            size = int.from_bytes(header[4:], "big")
            if header[:4] != RESPONSE or size > MAX_ANSWER:
                raise _Broken("it speaks something else than KMIP")
            body = _receive(connection, size, deadline)
        except _Broken:
            _close(connection)
            raise
        except OSError as error:
            _close(connection)
            raise self._failed(error) from None
        except BaseException:
            _close(connection)
            raise
        try:
            answer = _decode(operation, header + body)
        except _Broken:
            _close(connection)
            raise
        except Refused:
            self._keep(connection)
            raise
        self._keep(connection)
        return answer

    def _keep(self, connection: ssl.SSLSocket) -> None:
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        _close(connection)

    def _failed(self, error: OSError | UnicodeError) -> KeystoreError | _Broken:
        if isinstance(error, ssl.SSLCertVerificationError):
            return KeystoreError(
                f"{self.host}:{self.port} is not the KMIP server that was meant ({_printable(error.verify_message)})",
                todo="look at its certificate, its name and the CA file",
            )
        if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            return KeystoreError(
                f"the KMIP server {self.host}:{self.port} refuses our certificate ({_printable(error.reason)})",
                todo="have it issued by the CA that the server trusts",
            )
        return _Broken(type(error).__name__, closed=isinstance(error, _CLOSED))


def _encode(operation: Any, payload: Any) -> bytes:
    from kmip.core import enums, primitives  # noqa: PLC0415
    from kmip.core.messages import contents, messages  # noqa: PLC0415
    from kmip.core.utils import BytearrayStream  # noqa: PLC0415

    header = messages.RequestHeader(
        protocol_version=contents.ProtocolVersion(1, 4), batch_count=contents.BatchCount(1)
    )
    item = messages.RequestBatchItem(
        operation=primitives.Enumeration(enums.Operation, operation, tag=enums.Tags.OPERATION),
        request_payload=payload,
    )
    stream = BytearrayStream()
    messages.RequestMessage(request_header=header, batch_items=[item]).write(
        stream, enums.KMIPVersion.KMIP_1_4
    )
    return bytes(stream.buffer)


def _decode(operation: Any, answer: bytes) -> Any:
    from kmip.core import enums  # noqa: PLC0415
    from kmip.core.messages import messages  # noqa: PLC0415
    from kmip.core.utils import BytearrayStream  # noqa: PLC0415

    message = messages.ResponseMessage()
    try:
        message.read(BytearrayStream(answer), enums.KMIPVersion.KMIP_1_4)
        (item,) = message.batch_items
        status = item.result_status.value
        reason = item.result_reason.value.name if item.result_reason is not None else "no reason"
        answered = item.operation.value if item.operation is not None else None
    except Exception:  # PyKMIP raises its own and Python's own errors on bytes that are no message
        raise _Broken("its answer is no KMIP message") from None
    if status is not enums.ResultStatus.SUCCESS:
        raise Refused(reason)
    if answered is not operation or item.response_payload is None:
        raise _Broken("it answered something else")
    return item.response_payload


def _receive(connection: ssl.SSLSocket, size: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < size:
        connection.settimeout(_left(deadline))
        part = connection.recv(size - len(received))
        if not part:
            raise _Broken("it closed the connection", closed=True)
        received += part
    return bytes(received)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _Broken("it took too long")
    return left


def _close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.close()


def _printable(text: object) -> str:
    return re.sub(r"[^ -~]", "?", str(text))[:120]


def _import_kmip() -> None:
    with warnings.catch_warnings():
        # Its models for a server are imported with it, and declared in SQLAlchemy's old style.
        warnings.simplefilter("ignore")
        import kmip.core.messages.messages  # noqa: F401, PLC0415
