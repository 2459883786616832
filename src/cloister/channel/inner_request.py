"""What was inside a sealed request, as the scope of an application: nothing of the outer request is in it. Pure."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from cloister.channel import asgi, bhttp, headers, padding
from cloister.errors import FormatError, OversizedChunk

MAX_PIECES: Final = 1 << 16
"""Portions in which a request's content may come; each costs more than its bytes."""
_SLICE: Final = 64 * 1024


def decode_request(message: bytes) -> tuple[bhttp.Request, bytes]:
    """Head and content. Raises :class:`FormatError`, :class:`OversizedChunk`."""
    decoder = bhttp.RequestDecoder()
    head: bhttp.Request | None = None
    parts: list[bytes] = []
    # In slices, so that the bound holds before there are millions of pieces.
    for at in range(0, len(message) + 1, _SLICE):
        last = at + _SLICE > len(message)
        for event in (*decoder.feed(message[at : at + _SLICE]), *(decoder.finish() if last else ())):
            if isinstance(event, bhttp.Head):
                head = event.message
            elif isinstance(event, bhttp.BodyChunk):
                parts.append(event.data)
        if len(parts) > MAX_PIECES:
            raise OversizedChunk(f"the request's content comes in more than {MAX_PIECES} pieces")
    if head is None:
        raise FormatError("the sealed message holds no request")
    return head, b"".join(parts)


def inner_scope(outer: asgi.Scope, request: bhttp.Request, body: bytes, key_id: int | None) -> asgi.Scope:
    """The application's scope: every field from inside, ``state`` (the server's own) from the server."""
    target, _, query = request.path.partition(b"?")
    if not target.startswith(b"/"):
        raise FormatError("the request's target is not a path")
    if request.scheme not in (b"http", b"https"):
        raise FormatError("the request's scheme is neither http nor https")
    dropped = (b"content-length", padding.PADDING_HEADER, headers.REQUEST_ID_HEADER, headers.RECEIPT_HEADER)
    fields = [field for field in headers.across(request.headers) if field[0] not in dropped]
    if request.authority and headers.first(fields, b"host") is None:
        fields.insert(0, (b"host", request.authority))
    fields.append((b"content-length", str(len(body)).encode("ascii")))
    request_id = headers.first(request.headers, headers.REQUEST_ID_HEADER)
    if request_id is not None:
        if not headers.REQUEST_ID.match(request_id):
            raise FormatError("cloister-request-id is not 32 lower-case hexadecimal digits")
        fields.append((headers.REQUEST_ID_HEADER, request_id))
    sealed = {"request_id": request_id.decode("ascii") if request_id else None, "key_id": key_id}
    scope: asgi.Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method.decode("ascii"),
        "scheme": request.scheme.decode("ascii"),
        "path": unquote_to_bytes(target).decode("utf-8", "replace"),
        "raw_path": target,
        "query_string": query,
        "root_path": "",
        "headers": fields,
        "client": None,
        "server": None,
        "extensions": {headers.EXTENSION: sealed},
    }
    if "state" in outer:
        scope["state"] = dict(outer["state"])
    return scope
