"""The client's side of one sealed exchange: a request sealed and padded, its answer opened as it arrives. Pure.

An answer's head and data are handed out as their chunks open; that the answer is whole is known at ``finish()``,
and a caller that stops before has not seen all of it. Everything that does not open, or ends early, raises.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cloister.channel import bhttp, headers, padding
from cloister.channel.ohttp import KeyConfig, RequestSealer
from cloister.channel.receipts import encode_salt
from cloister.errors import TruncatedMessage

if TYPE_CHECKING:
    from cloister.channel.receipt_file import Promised


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """What the caller wants to ask, before sealing."""

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes = field(repr=False)
    """Path and query, percent-encoded."""
    fields: headers.Fields = field(repr=False)
    body: bytes = field(repr=False)
    request_id: bytes
    """32 lower-case hexadecimal digits, drawn once for a request and its retry."""


class SealedExchange:
    """One request under one encapsulated key; sealing the request again needs another exchange."""

    def __init__(self, config: KeyConfig, request: PlainRequest, *, salt: bytes | None = None) -> None:
        """``salt`` asks for a receipt."""
        sealer = RequestSealer(config)
        fields = (
            *headers.to_seal(request.fields),
            (headers.REQUEST_ID_HEADER, request.request_id),
            (padding.PADDING_HEADER, padding.PADDING_VERSION),
            *(() if salt is None else ((headers.RECEIPT_HEADER, encode_salt(salt)),)),
        )
        head = bhttp.Request(
            method=request.method,
            scheme=request.scheme,
            authority=request.authority,
            path=request.path,
            headers=fields,
        )
        message = bhttp.encode_request(head, request.body)
        message = message.ljust(padding.request_size(len(message)), b"\x00")
        last = (len(message) - 1) // padding.LARGEST * padding.LARGEST
        parts = [sealer.header]
        for at in range(0, len(message), padding.LARGEST):
            parts.append(sealer.seal(message[at : at + padding.LARGEST], final=at == last))
        self.content = b"".join(parts)
        """What goes out: ``message/ohttp-chunked-req``."""
        self.answer = AnswerReader(sealer)


class AnswerReader:
    """Opens the answer to one request, fed with bytes as they arrive."""

    def __init__(self, sealer: RequestSealer) -> None:
        self._opener = sealer.response(max_chunk=padding.LARGEST)
        self._decoder = bhttp.ResponseDecoder()
        self._records: padding.RecordReader | None = None
        self.head: bhttp.Response | None = None
        self.waiting: list[bytes] = []
        """Data that came with the head."""
        self.ended = False
        """Whether :meth:`finish` was called."""
        self.trailers: headers.Fields = ()
        """Known at :meth:`finish`."""
        self._hash = hashlib.sha256()
        self.promised: Promised | None = None
        """What the answer's receipt has to be, if one was asked for."""

    @property
    def body_sha256(self) -> bytes:
        """Of all data that was opened so far."""
        return self._hash.digest()

    def feed(self, data: bytes) -> list[bytes]:
        """The data opened by these bytes. Raises :class:`~cloister.errors.ChannelError` and its kin."""
        found: list[bytes] = []
        for plaintext in self._opener.feed(data):
            found += self._take(self._decoder.feed(plaintext))
        return found

    def finish(self) -> list[bytes]:
        """The last data, once nothing more arrives. Raises :class:`TruncatedMessage` unless that was all."""
        self.ended = True
        found: list[bytes] = []
        for plaintext in self._opener.finish():
            found += self._take(self._decoder.feed(plaintext))
        found += self._take(self._decoder.finish())
        if self.head is None:
            raise TruncatedMessage("the sealed answer has no head")
        if self._records is not None:
            self._records.finish()
        return found

    def _take(self, events: list[bhttp.Head[bhttp.Response] | bhttp.BodyChunk | bhttp.End]) -> list[bytes]:
        found: list[bytes] = []
        for event in events:
            if isinstance(event, bhttp.Head):
                self._begin(event.message)
            elif isinstance(event, bhttp.BodyChunk):
                found += self._records.feed(event.data) if self._records is not None else [event.data]
            else:
                self.trailers = event.trailers
        for data in found:
            self._hash.update(data)
        return found

    def _begin(self, response: bhttp.Response) -> None:
        if headers.first(response.headers, padding.PADDING_HEADER) == padding.PADDING_VERSION:
            self._records = padding.RecordReader()
        self.head = bhttp.Response(status=response.status, headers=headers.to_present(response.headers))
