"""Documents of a verified service: added in parts that survive a cut line, listed, removed.

Over any ``httpx2`` client; given a sealed one nothing of a document is in the clear before it is inside the TEE. Adding the
same document again costs a digest: what is there already is not sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import httpx2

from cloister.client.api_answers import bounded, broken_off, check, event_object, events, unanswered
from cloister.encoding import encode_json, parse_json
from cloister.errors import FormatError, NetworkError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE: Final = "/v1/knowledge"
PART: Final = 2 << 20
"""Bytes of each part but the last."""
MAX_DOCUMENT: Final = 64 << 20
MAX_LIST: Final = 16 << 20
MISSING: Final = 409
"""Status where parts of a document are not there."""
Told = Callable[[str, int, int], None]
"""Called with what is being done ("sent", "embedded"), how much of it, and of how much."""


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a document."""

    what: str
    """added, replaced or unchanged."""
    passages: int


class Documents:
    """``headers`` go with each request: an API key of a user."""

    def __init__(self, client: httpx2.Client, headers: Mapping[str, str] | None = None) -> None:
        self._client = client
        self._headers = dict(headers or {})

    def collections(self) -> list[dict[str, Any]]:
        """Those of this user. Raises as :meth:`add`."""
        return self._list(f"{BASE}/collections")

    def documents(self, collection: str) -> list[dict[str, Any]]:
        """Of one collection. Raises as :meth:`add`."""
        return self._list(f"{BASE}/collections/{_name(collection)}/documents")

    def add(
        self, collection: str, name: str, path: Path, told: Told = lambda _what, _done, _of: None
    ) -> Added:
        """The file at ``path`` under ``name``.

        Raises UsageError for what the service refuses and for a file that cannot be read, NetworkError where it does not
        answer, InferenceError where it fails, CloisterError of the sealed channel.
        """
        with _opened(path) as (file, size):
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            document = f"{BASE}/collections/{_name(collection)}/documents/{_name(name)}"
            parts = -(-size // PART)
            body = encode_json({"digest": digest, "parts": parts})
            added = self._added(document, body, told)  # it may be there, or its parts
            if added is None:
                held = self._object("GET", f"{BASE}/uploads/{digest}")["parts"]
                for number in range(parts):
                    if number not in held:
                        file.seek(number * PART)
                        self._object(
                            "PUT",
                            f"{BASE}/uploads/{digest}/{number}",
                            file.read(PART),
                            "application/octet-stream",
                        )
                    told("sent", min(size, (number + 1) * PART), size)
                added = self._added(document, body, told)
        if added is None:
            raise NetworkError("the service has forgotten parts of the document", todo="add it again")
        return added

    def remove(self, collection: str, name: str) -> int:
        """How many documents of the same content are left where this user may look. Raises as :meth:`add`."""
        found = self._object("DELETE", f"{BASE}/collections/{_name(collection)}/documents/{_name(name)}")
        return int(found["copies"])

    def _added(self, document: str, body: bytes, told: Told) -> Added | None:
        """What became of it; None where parts are missing."""
        fields = {"content-type": "application/json", **self._headers}
        try:
            with self._client.stream("PUT", document, content=body, headers=fields) as response:
                if response.status_code == MISSING:
                    return None
                check(response)
                if response.headers.get("content-type", "").startswith("application/json"):
                    return _added(parse_json(bounded(response), what="what became of a document"))
                for data in events(response):
                    event = event_object(data)
                    if event.get("type") == "end":
                        return _added(event)
                    told("embedded", int(event["done"]), int(event["of"]))
        except httpx2.TransportError as error:
            raise unanswered(error) from None
        except (KeyError, TypeError, ValueError):
            raise FormatError("what became of a document was not told") from None
        raise broken_off()

    def _list(self, path: str) -> list[dict[str, Any]]:
        found = self._object("GET", path)["data"]
        if not isinstance(found, list):
            raise FormatError("the service listed nothing")
        return found

    def _object(self, method: str, path: str, body: bytes = b"", kind: str = "") -> dict[str, Any]:
        fields = {**({"content-type": kind} if kind else {}), **self._headers}
        try:
            with self._client.stream(method, path, content=body, headers=fields) as response:
                check(response)
                found = parse_json(bounded(response, MAX_LIST), what="the service's answer", limit=MAX_LIST)
        except httpx2.TransportError as error:
            raise unanswered(error) from None
        if not isinstance(found, dict):
            raise FormatError("the service's answer is none")
        return found


def _added(told: dict[str, Any]) -> Added:
    return Added(str(told["what"]), int(told["passages"]))


def _name(text: str) -> str:
    """As a part of a path; slashes part a name's folders."""
    return quote(text, safe="/")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if not 0 < size <= MAX_DOCUMENT:
                raise UsageError(
                    f"{path} is empty, or over {MAX_DOCUMENT >> 20} MiB", todo="leave it out, or split it"
                )
            yield file, size
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", todo="check its permissions") from None
