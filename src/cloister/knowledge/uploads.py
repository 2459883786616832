"""Documents on their way in: parts that are kept in memory until all are there, so that a cut line loses little.

Bounded for each user and altogether, and forgotten after a while. A document is known by the digest of its content, which
is checked when its parts are put together.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
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
MAX_DOCUMENTS: Final = 8
"""Of a user, on their way in at once."""
LEAST_CHARGE: Final = 64 << 10
SECONDS: Final = 900.0
"""How long parts are kept after the last one came."""


@dataclass(slots=True)
class _Upload:
    parts: dict[int, bytes] = field(default_factory=dict)
    charged: int = 0
    touched: float = 0.0


class Uploads:
    """Parts by user and digest. Threads may share it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, bytes], _Upload] = OrderedDict()
        """Whose last part is the oldest comes first."""
        self._of: dict[str, list[int]] = {}
        """Of each user: documents, and bytes that are charged."""
        self._whole = 0

    def put(self, user: str, digest: bytes, number: int, data: bytes) -> None:
        """Keep one part. Raises RequestRefused where there is no room."""
        if not 0 < len(data) <= PART or not 0 <= number < MAX_CONTENT // PART:
            raise RequestRefused(f"A part has 1 to {PART} bytes", code="invalid_value", param="part")
        with self._lock:
            self._forget()
            upload = self._held.get((user, digest))
            before = 0 if upload is None else _charge(upload.parts.get(number, b""))
            more = _charge(data) - before
            documents, own = self._of.get(user, (0, 0))
            if (
                own + more > MAX_OF_USER
                or self._whole + more > MAX_ALTOGETHER
                or (upload is None and documents >= MAX_DOCUMENTS)
            ):
                raise RequestRefused(
                    "Too many documents are on their way in; try again in a moment", status=503, code="overloaded",
                    retry_after=10,
                )  # fmt: skip
            if upload is None:
                upload = self._held[user, digest] = _Upload()
            self._count(user, int(not upload.parts), more)
            upload.parts[number] = data
            upload.charged += more
            upload.touched = self._clock()
            self._held.move_to_end((user, digest))

    def there(self, user: str, digest: bytes) -> list[int]:
        """Numbers of the parts that are kept."""
        with self._lock:
            self._forget()
            upload = self._held.get((user, digest))
            return [] if upload is None else sorted(upload.parts)

    def require(self, user: str, digest: bytes, parts: int) -> None:
        """Raise RequestRefused unless so many parts are there, and no others."""
        if self.there(user, digest) != list(range(parts)):
            raise RequestRefused(
                "Parts of this document are missing", status=409, code="parts_missing", param="parts"
            )

    def take(self, user: str, digest: bytes, parts: int) -> bytes:
        """The whole document, which is not kept any more. Raises RequestRefused, DocumentRefused."""
        self.require(user, digest, parts)
        with self._lock:
            upload = self._drop((user, digest))
        content = b"".join(part for _, part in sorted(upload.parts.items()))
        if hashlib.sha256(content).digest() != digest:
            raise DocumentRefused("its content is not that of its digest", todo="add it again")
        return content

    def _forget(self) -> None:
        since = self._clock() - SECONDS
        while self._held:
            oldest = next(iter(self._held))
            if self._held[oldest].touched >= since:
                return
            self._drop(oldest)

    def _drop(self, key: tuple[str, bytes]) -> _Upload:
        upload = self._held.pop(key, None) or _Upload()
        if upload.parts:
            self._count(key[0], -1, -upload.charged)
        return upload

    def _count(self, user: str, documents: int, more: int) -> None:
        known = self._of.setdefault(user, [0, 0])
        known[0] += documents
        known[1] += more
        self._whole += more
        if known == [0, 0]:
            del self._of[user]


def _charge(data: bytes) -> int:
    """A small part takes more than its bytes."""
    return max(len(data), LEAST_CHARGE) if data else 0
