"""When to ask a busy service again: pure arithmetic on what it said and how often it was asked.

``Retry-After`` (RFC 9110, section 10.2.3) is honoured, as seconds and as a date; without it the wait doubles, with
jitter so that many clients do not come back together. Nothing here waits, and nothing waits longer than was allowed.
"""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 8.0
MAX_RETRY_AFTER: Final = 86_400.0


def retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait by the header ``value``; None where there is none, or none that can be read."""
    if value is None or len(value) > 64:
        return None
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return min(float(text), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = moment.timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def wait_before(attempt: int, *, asked: float | None, jitter: float) -> float:
    """Seconds before the try behind ``attempt`` (from 1); ``asked`` is the service's wish, ``jitter`` in [0, 1)."""
    if asked is not None:
        return asked
    wait = min(FIRST_WAIT * 2.0 ** min(attempt - 1, 16), LONGEST_WAIT)
    return wait * (0.5 + jitter / 2)
