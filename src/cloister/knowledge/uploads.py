"""Documents on their way in: parts that are kept in memory until all are there, so that a cut line loses little.

Bounded for each user and altogether, and forgotten after a while. A document is known by the digest of its content, which
is checked when its parts are put together.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cloister.errors import DocumentRefused
from cloister.inference.api_errors import RequestRefused
from cloister.knowledge.reader import MAX_CONTENT

PART: Final = 2 << 20
"""Bytes of each part but the last."""
MAX_OF_USER: Final = 2 * MAX_CONTENT
MAX_ALTOGETHER: Final = 8 * MAX_CONTENT
SECONDS: Final = 900.0
"""How long parts are kept after the last one came."""


@dataclass(slots=True)
class _Upload:
    parts: dict[int, bytes] = field(default_factory=dict)
    touched: float = 0.0

    @property
    def size(self) -> int:
        return sum(map(len, self.parts.values()))


class Uploads:
    """Parts by user and digest. Threads may share it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[tuple[str, bytes], _Upload] = {}

    def put(self, user: str, digest: bytes, number: int, data: bytes) -> None:
        """Keep one part. Raises RequestRefused where there is no room."""
        if not 0 < len(data) <= PART or not 0 <= number < MAX_CONTENT // PART:
            raise RequestRefused(f"A part has 1 to {PART} bytes", code="invalid_value", param="part")
        with self._lock:
            self._forget()
            own = sum(upload.size for (whose, _), upload in self._held.items() if whose == user)
            whole = sum(upload.size for upload in self._held.values())
            upload = self._held.get((user, digest), _Upload())
            more = len(data) - len(upload.parts.get(number, b""))
            if own + more > MAX_OF_USER or whole + more > MAX_ALTOGETHER:
                raise RequestRefused(
                    "Too many documents are on their way in; try again in a moment", status=503, code="overloaded",
                    retry_after=10,
                )  # fmt: skip
            upload.parts[number] = data
            upload.touched = self._clock()
            self._held[user, digest] = upload

    def there(self, user: str, digest: bytes) -> list[int]:
        """Numbers of the parts that are kept."""
        with self._lock:
            self._forget()
            upload = self._held.get((user, digest))
            return [] if upload is None else sorted(upload.parts)

    def take(self, user: str, digest: bytes, parts: int) -> bytes:
        """The whole document, which is not kept any more. Raises RequestRefused, DocumentRefused."""
        with self._lock:
            self._forget()
            upload = self._held.get((user, digest))
            if upload is None or sorted(upload.parts) != list(range(parts)):
                raise RequestRefused(
                    "Parts of this document are missing", status=409, code="parts_missing", param="parts"
                )
            del self._held[user, digest]
        content = b"".join(upload.parts[number] for number in range(parts))
        if hashlib.sha256(content).digest() != digest:
            raise DocumentRefused("its content is not that of its digest", todo="add it again")
        return content

    def _forget(self) -> None:
        since = self._clock() - SECONDS
        self._held = {key: upload for key, upload in self._held.items() if upload.touched >= since}
